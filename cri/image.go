package cri

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/image"
)

// PullImage fetches an image and answers its id, which is the config digest everywhere. The pull has no
// deadline but that of its progress; identical pulls join.
func (s *Server) PullImage(ctx context.Context, req *criv1.PullImageRequest) (*criv1.PullImageResponse, error) {
	if err := plainImageSpec(req.GetImage()); err != nil {
		return nil, toStatus(err)
	}
	var auth *image.Auth
	if a := req.GetAuth(); a != nil {
		auth = &image.Auth{
			Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
			IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
		}
	}
	pulled, err := s.cfg.Images.Pull(ctx, req.GetImage().GetImage(), image.PullOptions{Auth: auth})
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.PullImageResponse{ImageRef: pulled.ID}, nil
}

// ImageStatus of an absent image is an answer without one, never NotFound.
func (s *Server) ImageStatus(_ context.Context, req *criv1.ImageStatusRequest) (*criv1.ImageStatusResponse, error) {
	if err := plainImageSpec(req.GetImage()); err != nil {
		return nil, toStatus(err)
	}
	img, err := s.cfg.Images.Get(req.GetImage().GetImage())
	if errors.Is(err, image.ErrNotFound) {
		return &criv1.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &criv1.ImageStatusResponse{Image: toCRI(img)}
	if req.GetVerbose() {
		info, err := json.Marshal(map[string]any{"digest": img.Digest, "config": img.Config, "createdAt": img.CreatedAt})
		if err != nil {
			return nil, toStatus(err)
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}

// ListImages answers from memory; a filter names one image by any of its references.
func (s *Server) ListImages(_ context.Context, req *criv1.ListImagesRequest) (*criv1.ListImagesResponse, error) {
	images, err := listImages(s.cfg.Images, req.GetFilter())
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.ListImagesResponse{Images: images}, nil
}

func listImages(store *image.Store, filter *criv1.ImageFilter) ([]*criv1.Image, error) {
	var images []*criv1.Image
	if ref := filter.GetImage().GetImage(); ref != "" {
		img, err := store.Get(ref)
		if errors.Is(err, image.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*criv1.Image{toCRI(img)}, nil
	}
	for _, img := range store.List() {
		images = append(images, toCRI(img))
	}
	return images, nil
}

// RemoveImage removes the image with all its tags, named by any reference to it; an absent one is success (B1).
// What runs on it keeps its root file system (B47).
func (s *Server) RemoveImage(ctx context.Context, req *criv1.RemoveImageRequest) (*criv1.RemoveImageResponse, error) {
	img, err := s.cfg.Images.Get(req.GetImage().GetImage())
	if errors.Is(err, image.ErrNotFound) {
		return &criv1.RemoveImageResponse{}, nil
	}
	if err == nil {
		err = s.cfg.Images.Remove(ctx, img.ID)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &criv1.RemoveImageResponse{}, nil
}

// ImageFsInfo says where images are and what they take. Writable layers have an entry of their own only where they are on
// another file system.
func (s *Server) ImageFsInfo(ctx context.Context, _ *criv1.ImageFsInfoRequest) (*criv1.ImageFsInfoResponse, error) {
	info, err := s.cfg.Images.FsInfo(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	now := time.Now().UnixNano()
	usage := func(used, inodes uint64) *criv1.FilesystemUsage {
		return &criv1.FilesystemUsage{
			Timestamp: now, FsId: &criv1.FilesystemIdentifier{Mountpoint: info.Mountpoint},
			UsedBytes: &criv1.UInt64Value{Value: used}, InodesUsed: &criv1.UInt64Value{Value: inodes},
		}
	}
	resp := &criv1.ImageFsInfoResponse{ImageFilesystems: []*criv1.FilesystemUsage{usage(info.UsedBytes, info.InodesUsed)}}
	layers, err := s.cfg.Manager.LayersFilesystem(info.Mountpoint)
	if err != nil {
		return nil, toStatus(err)
	}
	if layers != nil {
		resp.ContainerFilesystems = append(resp.ContainerFilesystems, layers)
	}
	return resp, nil
}

// plainImageSpec refuses what an image cannot be asked for yet.
func plainImageSpec(spec *criv1.ImageSpec) error {
	if handler := spec.GetRuntimeHandler(); handler != "" {
		return &podsandbox.Error{Kind: podsandbox.ErrInvalid, Err: errors.New("image.runtime_handler " + strconv.Quote(handler) + ": the only handler is \"\"")}
	}
	return nil
}

// toCRI gives the API's form. The user is uid or username, never both; neither means root (BEHAVIOURS 1b).
func toCRI(img image.Image) *criv1.Image {
	out := &criv1.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.SizeBytes, Pinned: img.Pinned,
		Spec: &criv1.ImageSpec{Image: img.ID},
	}
	user, _, _ := strings.Cut(img.Config.User, ":")
	if user == "" {
		return out
	}
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil && uid >= 0 && uid <= math.MaxUint32 {
		out.Uid = &criv1.Int64Value{Value: uid}
		return out
	}
	out.Username = user
	return out
}
