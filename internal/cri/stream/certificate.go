// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificates are the server's TLS files. They are looked at with each handshake, so that a renewed certificate needs no restart;
// files that cannot be read leave those in force that could.
type certificates struct {
	certFile, keyFile, caFile string
	log                       *slog.Logger

	mu     sync.Mutex
	stamps [3]stamp
	inUse  *tls.Config
}

// stamp tells a file from its successor.
type stamp struct {
	at   time.Time
	size int64
}

func newCertificates(certFile, keyFile, caFile string, log *slog.Logger) *certificates {
	return &certificates{certFile: certFile, keyFile: keyFile, caFile: caFile, log: log}
}

// config reads the files for the first time.
func (c *certificates) config() (*tls.Config, error) {
	c.stamps = c.look()
	first, err := c.read()
	if err != nil {
		return nil, err
	}
	c.inUse = first
	config := first.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil }
	return config, nil
}

// current is the configuration for one more client.
func (c *certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.look()
	if now == c.stamps {
		return c.inUse
	}
	c.stamps = now
	fresh, err := c.read()
	if err != nil {
		c.log.Error("streaming server: the certificate in force stays", "error", err)
		return c.inUse
	}
	c.log.Info("streaming server: took over a new certificate", "file", c.certFile)
	c.inUse = fresh
	return fresh
}

func (c *certificates) look() (stamps [3]stamp) {
	for i, file := range []string{c.certFile, c.keyFile, c.caFile} {
		if info, err := os.Stat(file); err == nil {
			stamps[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}

func (c *certificates) read() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s and key %s: %w", c.certFile, c.keyFile, err)
	}
	// HTTP/2 has no upgrades.
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if c.caFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(c.caFile)
	if err != nil {
		return nil, fmt.Errorf("read client CAs: %w", err)
	}
	config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read client CAs %s: %w", c.caFile, errors.New("no certificate in it"))
	}
	return config, nil
}
