// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"net"
	"sync"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cri"
	"github.com/berth-run/berth/internal/cri/operator"
	"github.com/berth-run/berth/internal/imageapi/imagepb"
	"github.com/berth-run/berth/internal/telemetry"
)

const (
	// maxMessage is what a kubelet accepts and sends, in bytes (k8s.io/cri-client).
	maxMessage = 16 << 20
	// drainTime is what answers that are nearly ready have to go out.
	drainTime = 300 * time.Millisecond
)

// endpoint is a socket and what is served on it.
type endpoint struct {
	path     string
	listener net.Listener
	server   *grpc.Server
}

// listen takes the sockets: the CRI's, and where configured one for its ImageService alone.
func (d *daemon) listen() (all []endpoint, err error) {
	defer func() {
		if err != nil {
			closeAll(all)
			all = nil
		}
	}()
	e, err := d.endpoint(d.cfg.Socket)
	if err != nil {
		return all, err
	}
	all = append(all, e)
	runtimeapi.RegisterRuntimeServiceServer(e.server, d.api)
	runtimeapi.RegisterImageServiceServer(e.server, d.api)
	imagepb.RegisterImagesServer(e.server, operator.New(d.images, d.pods.ImagesInUse))
	if d.cfg.Images.Socket == "" {
		return all, nil
	}
	if e, err = d.endpoint(d.cfg.Images.Socket); err != nil {
		return all, fmt.Errorf("images.socket: %w", err)
	}
	runtimeapi.RegisterImageServiceServer(e.server, d.api)
	return append(all, e), nil
}

func (d *daemon) endpoint(path string) (endpoint, error) {
	l, err := listen(path, d.cfg.SocketGroup)
	if err != nil {
		return endpoint{}, err
	}
	measured, _ := d.observers()
	unary, stream := telemetry.Interceptors(telemetry.InterceptorConfig{Log: d.log, Status: cri.Status, Describe: d.describe, Calls: d.calls,
		Observer: measured, Tracer: d.tracer})
	return endpoint{path, l, grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window),
		grpc.UnaryInterceptor(unary), grpc.StreamInterceptor(stream))}, nil
}

// window bounds what a client may send ahead, in bytes. To find a better one, the library would ping the client with each request.
const window = 1 << 20

func (e endpoint) serve() error {
	if err := e.server.Serve(e.listener); err != nil {
		return fmt.Errorf("serve on %s: %w", e.path, err)
	}
	return nil
}

func closeAll(endpoints []endpoint) {
	for _, e := range endpoints {
		e.listener.Close()
	}
}

// drain lets answers that are nearly ready go out. Operations that take longer are cut off; the next start
// finishes or rolls them back, as after a crash.
func (d *daemon) drain(endpoints []endpoint) {
	d.log.Info("shutting down; pods run on")
	d.notify(sdnotify.SdNotifyStopping)
	d.pods.EndEvents() // else a kubelet's stream of events would keep the server from stopping
	var all sync.WaitGroup
	for _, e := range endpoints {
		all.Go(e.server.GracefulStop)
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainTime):
		for _, e := range endpoints {
			e.server.Stop()
		}
	}
}
