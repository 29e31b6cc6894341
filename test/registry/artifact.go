// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Artifact is an OCI artifact: files with types and annotations of their own.
type Artifact struct {
	// Type is the artifact type; ConfigType that of its configuration, empty for the empty one.
	Type, ConfigType string
	Files            []ArtifactFile
}

// ArtifactFile is one layer of an artifact.
type ArtifactFile struct {
	// Name is its title; empty: it has none.
	Name, MediaType string
	Data            []byte
}

// MustPushArtifact stores an artifact in the registry at host as repository:tag and returns its full reference and digest.
func MustPushArtifact(tb testing.TB, host, repoTag string, a Artifact) (ref, dgst string) {
	tb.Helper()
	raw, d, err := pushArtifact(host, repoTag, a)
	if err != nil {
		tb.Fatalf("push artifact %s: %v\n%s", repoTag, err, raw)
	}
	return host + "/" + repoTag, d.String()
}

func pushArtifact(host, repoTag string, a Artifact) ([]byte, digest.Digest, error) {
	repository, tag, _ := strings.Cut(repoTag, ":")
	at := "http://" + host + "/v2/" + repository
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: a.Type, Config: ocispec.DescriptorEmptyJSON}
	m.SchemaVersion = 2
	m.Config.Data = nil
	if a.ConfigType != "" {
		m.Config.MediaType = a.ConfigType
	}
	blobs := [][]byte{ocispec.DescriptorEmptyJSON.Data}
	for _, f := range a.Files {
		l := ocispec.Descriptor{MediaType: f.MediaType, Digest: digest.FromBytes(f.Data), Size: int64(len(f.Data))}
		if l.MediaType == "" {
			l.MediaType = "application/octet-stream"
		}
		if f.Name != "" {
			l.Annotations = map[string]string{ocispec.AnnotationTitle: f.Name}
		}
		m.Layers, blobs = append(m.Layers, l), append(blobs, f.Data)
	}
	for _, b := range blobs {
		if err := send(http.MethodPost, at+"/blobs/uploads/?digest="+digest.FromBytes(b).String(), "application/octet-stream", b); err != nil {
			return nil, "", err
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, "", err
	}
	return raw, digest.FromBytes(raw), send(http.MethodPut, at+"/manifests/"+tag, m.MediaType, raw)
}

func send(method, url, media string, body []byte) error {
	r, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", media)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		said, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
		return fmt.Errorf("%s %s: %s: %s", method, url, answer.Status, said)
	}
	return nil
}
