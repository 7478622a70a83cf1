package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/mounts"
)

// findImageMounts finds the images that a request mounts.
func findImageMounts(images Images, config *criv1.ContainerConfig) ([]record.ImageMount, error) {
	var list []record.ImageMount
	for i, m := range config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		image, err := images.Image(m.GetImage().GetImage())
		if err != nil {
			return nil, fmt.Errorf("config.mounts[%d].image.image %q: %w", i, m.GetImage().GetImage(), err)
		}
		list = append(list, record.ImageMount{Path: path.Clean(m.GetContainerPath()), ImageID: image.ID})
	}
	return list, nil
}

// holders names those who hold a container's images: itself its own, and one each of those it mounts.
func holders(rec *record.Container) map[string]string {
	list := map[string]string{rec.ID: rec.ImageID}
	for i, m := range rec.ImageMounts {
		list[rec.ID+"/mounts/"+strconv.Itoa(i)] = m.ImageID
	}
	return list
}

// holdImages keeps the layers of all images of a container, whatever happens to the images, until releaseImages.
func holdImages(images Images, rec *record.Container) error {
	var errs []error
	for holder, id := range holders(rec) {
		if err := images.Hold(id, holder); err != nil {
			errs = append(errs, fmt.Errorf("hold image %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func releaseImages(ctx context.Context, images Images, rec *record.Container) error {
	var errs []error
	for holder, id := range holders(rec) {
		if err := images.Release(ctx, holder); err != nil {
			errs = append(errs, fmt.Errorf("release image %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// imageIDs is what the spec is told of a container's image mounts.
func imageIDs(rec *record.Container) map[string]string {
	ids := map[string]string{}
	for _, m := range rec.ImageMounts {
		ids[m.Path] = m.ImageID
	}
	return ids
}

// openImage opens an image mount of a container of s.
func openImage(ctx context.Context, m *core, s *sandbox, containerID string, image spec.ImageMount, label string) (*mounts.Tree, error) {
	layers, err := m.cfg.Images.Layers(ctx, image.ID)
	if err != nil {
		return nil, err
	}
	ids, err := idMap(m.cfg.Namespaces, s)
	if err != nil {
		return nil, err
	}
	if ids != nil {
		defer ids.UserNS.Close()
	}
	empty := filepath.Join(m.stateDir(containerID), "empty")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return nil, fmt.Errorf("make empty layer: %w", err)
	}
	source := mounts.ImageSource{Lower: layers, Empty: empty, SubPath: image.SubPath, NoExec: image.NoExec, MountLabel: label, IDMap: ids}
	tree, err := m.cfg.Mounts.OpenImage(ctx, source)
	if errors.Is(err, mounts.ErrSubPath) {
		return nil, kindf(ErrInvalid, "image_sub_path %q: %w", image.SubPath, err)
	}
	return tree, err
}

// statusMounts are a container's mounts with the id of each image in image_ref, which is there for it (KEP-5365).
func statusMounts(c *container, rec *record.Container) []*criv1.Mount {
	if len(rec.ImageMounts) == 0 {
		return c.config.GetMounts()
	}
	ids := imageIDs(rec)
	list := make([]*criv1.Mount, len(c.config.GetMounts()))
	for i, m := range c.config.GetMounts() {
		if list[i] = m; m.GetImage() != nil {
			list[i] = proto.Clone(m).(*criv1.Mount)
			list[i].Image.ImageRef = ids[path.Clean(m.GetContainerPath())]
		}
	}
	return list
}
