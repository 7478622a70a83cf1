// Package admin is podwright's own service beside CRI, on the same socket: loading image archives, pulls with progress
// and the operations under way. It calls one service for each and holds no state.
// Source: cri/admin/v1/podwright.proto.
package admin

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/podwright/podwright/cri/admin/v1"
	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
)

// Config carries the services behind it; both are required.
type Config struct {
	Manager *podsandbox.Manager
	Images  *image.Store
}

// Server answers podwright.v1.
type Server struct {
	adminv1.UnimplementedAdminServer
	cfg Config
}

// New checks cfg.
func New(cfg Config) (*Server, error) {
	if cfg.Manager == nil || cfg.Images == nil {
		return nil, errors.New("admin: manager and images are required")
	}
	return &Server{cfg: cfg}, nil
}

// Register puts the service on a gRPC server.
func (s *Server) Register(g *grpc.Server) { adminv1.RegisterAdminServer(g, s) }

// LoadImages makes the images of an archive visible.
func (s *Server) LoadImages(stream grpc.ClientStreamingServer[adminv1.LoadImagesRequest, adminv1.LoadImagesResponse]) error {
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return status.Error(codes.InvalidArgument, "load images: the archive is empty")
	}
	if err != nil {
		return err
	}
	reader := &chunks{stream: stream, rest: first.GetData()}
	loaded, err := s.cfg.Images.Import(stream.Context(), reader, image.ImportOptions{Reference: first.GetReference()})
	if err != nil {
		return toStatus(err)
	}
	resp := &adminv1.LoadImagesResponse{}
	for _, img := range loaded {
		resp.Images = append(resp.Images, &adminv1.LoadedImage{Id: img.ID, RepoTags: img.RepoTags})
	}
	return stream.SendAndClose(resp)
}

// chunks reads the data of a stream's messages.
type chunks struct {
	stream grpc.ClientStreamingServer[adminv1.LoadImagesRequest, adminv1.LoadImagesResponse]
	rest   []byte
}

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		next, err := c.stream.Recv()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		c.rest = next.GetData()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// PullImage pulls and streams progress; a slow reader sees fewer reports, and holds nobody up.
func (s *Server) PullImage(req *adminv1.PullImageRequest, stream grpc.ServerStreamingServer[adminv1.PullImageResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	reports := make(chan image.Progress, 1)
	options := image.PullOptions{Progress: func(p image.Progress) {
		select {
		case reports <- p:
		default: // the reader is busy with an earlier one
		}
	}}
	if req.GetUsername() != "" {
		options.Auth = &image.Auth{Username: req.GetUsername(), Password: req.GetPassword()}
	}
	type result struct {
		img image.Image
		err error
	}
	done := make(chan result, 1)
	// Owner: this call; ends with the pull, which ctx cancels; the receive below waits for it.
	go func() {
		img, err := s.cfg.Images.Pull(ctx, req.GetImage(), options)
		done <- result{img, err}
	}()
	for {
		select {
		case p := <-reports:
			if err := stream.Send(progress(p)); err != nil {
				cancel()
				<-done
				return err
			}
		case r := <-done:
			if r.err != nil {
				return toStatus(r.err)
			}
			return stream.Send(&adminv1.PullImageResponse{ImageId: r.img.ID})
		}
	}
}

func progress(p image.Progress) *adminv1.PullImageResponse {
	return &adminv1.PullImageResponse{
		Phase: p.Phase, BytesDone: p.BytesDone, BytesTotal: p.BytesTotal, LayersDone: int32(p.LayersDone), LayersTotal: int32(p.LayersTotal),
	}
}

func toStatus(err error) error {
	switch {
	case errors.Is(err, image.ErrInvalidReference):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, image.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	}
	return status.Error(codes.Unknown, err.Error())
}
