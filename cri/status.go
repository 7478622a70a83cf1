package cri

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
	"github.com/podwright/podwright/runtime/keeper"
)

// kinds maps every sentinel a service returns to its code. The first match counts.
var kinds = []struct {
	kind error
	code codes.Code
}{
	{podsandbox.ErrNotFound, codes.NotFound},
	{podsandbox.ErrInvalid, codes.InvalidArgument},
	{podsandbox.ErrExists, codes.AlreadyExists},
	{podsandbox.ErrPrecondition, codes.FailedPrecondition},
	{podsandbox.ErrUnavailable, codes.Unavailable},
	{podsandbox.ErrTimeout, codes.DeadlineExceeded},
	{podsandbox.ErrNotSupported, codes.InvalidArgument},
	{podsandbox.ErrResourceLimit, codes.ResourceExhausted},
	{keeper.ErrDisconnected, codes.Unavailable},
	{image.ErrNotFound, codes.NotFound},
	{image.ErrInvalidReference, codes.InvalidArgument},
	{image.ErrAmbiguous, codes.InvalidArgument},
	{image.ErrInvalidAuth, codes.InvalidArgument},
	{image.ErrInvalidImage, codes.InvalidArgument},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// toStatus is the only place where errors get gRPC codes. What has no kind is Unknown: the kubelet
// matches image pull errors of that code by the beginning of their text.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return status.Error(k.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}
