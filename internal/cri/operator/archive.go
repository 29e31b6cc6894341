// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/berth-run/berth/internal/imageapi/imagepb"
	"github.com/berth-run/berth/internal/pod"
)

// chunk is what one message of an archive holds, in bytes.
const chunk = 256 << 10

// Import implements berth.v1.Images.
func (s *Server) Import(in grpc.ClientStreamingServer[imagepb.ImportRequest, imagepb.ImportResponse]) error {
	first, err := in.Recv()
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("import images: nothing was sent: %w", pod.ErrInvalid)
	} else if err != nil {
		return err
	}
	all, err := s.images.Import(in.Context(), &archiveReader{in: in, left: first.GetData()}, first.GetName())
	if err != nil {
		return err
	}
	out := &imagepb.ImportResponse{}
	for _, im := range all {
		out.Images = append(out.Images, &imagepb.ImportedImage{Id: im.ID, Names: names(im)})
	}
	return in.SendAndClose(out)
}

// archiveReader is an archive as the client sends it.
type archiveReader struct {
	in   grpc.ClientStreamingServer[imagepb.ImportRequest, imagepb.ImportResponse]
	left []byte
}

func (a *archiveReader) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		m, err := a.in.Recv()
		if err != nil {
			return 0, err // io.EOF: the client has sent all
		}
		a.left = m.GetData()
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// Export implements berth.v1.Images.
func (s *Server) Export(r *imagepb.ExportRequest, out grpc.ServerStreamingServer[imagepb.ExportResponse]) error {
	if len(r.GetImages()) == 0 {
		return fmt.Errorf("export images: images is empty: %w", pod.ErrInvalid)
	}
	w := bufio.NewWriterSize(archiveWriter{out}, chunk)
	if err := s.images.Export(out.Context(), w, r.GetImages()); err != nil {
		return err
	}
	return w.Flush()
}

type archiveWriter struct {
	out grpc.ServerStreamingServer[imagepb.ExportResponse]
}

func (a archiveWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); done += chunk {
		if err := a.out.Send(&imagepb.ExportResponse{Data: p[done:min(done+chunk, len(p))]}); err != nil {
			return done, err
		}
	}
	return len(p), nil
}
