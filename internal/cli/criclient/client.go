// SPDX-License-Identifier: Apache-2.0

// Package criclient connects the command line to a CRI socket, puts errors into words for people, and finds pods, containers and
// images by what people type: an ID, a beginning of one, or a name. It is for internal/cli and its sub-packages.
package criclient

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/imageapi/imagepb"
)

// maxAnswer is the largest answer that is taken, in bytes. A runtime sends at most 16 MiB; ExecSync has two streams of that.
const maxAnswer = 64 << 20

// dialTimeout bounds the connection to a local socket: a daemon whose listen queue is full does not answer.
const dialTimeout = 5 * time.Second

// Client speaks to one runtime.
type Client struct {
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	// Operator is what Berth alone has; other runtimes answer Unimplemented.
	Operator imagepb.ImagesClient
	// Socket is the path that it is connected to.
	Socket string
	// Timeout bounds one request; 0: Read and Change have their own bounds.
	Timeout time.Duration

	conn *grpc.ClientConn
}

// SocketPath takes "unix://" off an endpoint and says no to what is no unix socket.
func SocketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	switch {
	case path == "":
		return "", fmt.Errorf("socket %q: is empty", endpoint)
	case strings.Contains(path, "://"):
		return "", fmt.Errorf("socket %q: only unix sockets can be used: /path or unix:///path", endpoint)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("socket %q: %w", endpoint, err)
	}
	return abs, nil
}

// Dial connects. It tells apart why a socket cannot be reached: gRPC would call all of it "unavailable".
func Dial(ctx context.Context, endpoint string) (*Client, error) {
	path, err := SocketPath(endpoint)
	if err != nil {
		return nil, err
	}
	first, err := dial(ctx, path)
	if err != nil {
		return nil, unreachable(path, err)
	}
	var once sync.Once
	dialer := func(ctx context.Context, _ string) (net.Conn, error) {
		var conn net.Conn
		once.Do(func() { conn = first })
		if conn != nil {
			return conn, nil
		}
		return dial(ctx, path)
	}
	conn, err := grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dialer), grpc.WithAuthority("localhost"), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		_ = first.Close() // it was never used
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	conn.Connect()
	return &Client{Runtime: runtimeapi.NewRuntimeServiceClient(conn), Images: runtimeapi.NewImageServiceClient(conn), Operator: imagepb.NewImagesClient(conn),
		Socket: path, conn: conn}, nil
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, "unix", path)
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Read bounds a question, which a healthy daemon answers from memory.
func (c *Client) Read(ctx context.Context) (context.Context, context.CancelFunc) {
	return c.bound(ctx, 30*time.Second)
}

// Change bounds a request that changes something: network plugins and a full disk may take their time. extra is what the
// request itself allows, such as a grace period.
func (c *Client) Change(ctx context.Context, extra time.Duration) (context.Context, context.CancelFunc) {
	return c.bound(ctx, 4*time.Minute+extra)
}

// Unbounded bounds a request only if the user asked for it: a pull takes as long as it brings bytes.
func (c *Client) Unbounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return c.bound(ctx, 0)
}

func (c *Client) bound(ctx context.Context, usual time.Duration) (context.Context, context.CancelFunc) {
	switch {
	case c.Timeout > 0:
		return context.WithTimeout(ctx, c.Timeout)
	case usual > 0:
		return context.WithTimeout(ctx, usual)
	}
	return context.WithCancel(ctx)
}
