package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/cri"
	adminv1 "github.com/podwright/podwright/cri/admin/v1"
)

// loadChunk is how much of an archive goes into one message.
const loadChunk = 1 << 20

func imageCommand() *cobra.Command {
	cmd := groupCommand("image", "Load, pull, list and remove images of the running daemon")
	load := &cobra.Command{
		Use: "load [file]", Short: "Load images from an archive of docker save or an OCI layout (standard input without a file)", Args: cobra.MaximumNArgs(1),
		RunE: withDaemon(loadImages),
	}
	load.Flags().String("name", "", "name for the archive's only image instead of its own")
	pull := &cobra.Command{
		Use: "pull reference", Short: "Pull an image from its registry", Args: cobra.ExactArgs(1), RunE: withDaemon(pullImage),
	}
	pull.Flags().String("username", "", "user at the registry; the password is read from PODWRIGHT_REGISTRY_PASSWORD")
	cmd.AddCommand(load, pull,
		&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List images", Args: cobra.NoArgs, RunE: withDaemon(listImages)},
		&cobra.Command{Use: "rm reference...", Short: "Remove images with all their tags", Args: cobra.MinimumNArgs(1), RunE: withDaemon(removeImages)},
	)
	return cmd
}

// verb is a command that talks to the daemon.
type verb func(ctx context.Context, conn *grpc.ClientConn, cmd *cobra.Command, args []string) error

// withDaemon connects to the configured socket and gives gRPC errors back as plain sentences.
func withDaemon(run verb) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cfg, err := loadConfig(cmd)
		if err != nil {
			return err
		}
		conn, err := grpc.NewClient("unix://"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cri.MaxMessageBytes)))
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := run(cmd.Context(), conn, cmd, args); err != nil {
			return errors.New(status.Convert(err).Message())
		}
		return nil
	}
}

func loadImages(ctx context.Context, conn *grpc.ClientConn, cmd *cobra.Command, args []string) error {
	in := cmd.InOrStdin()
	if len(args) == 1 && args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	name, err := cmd.Flags().GetString("name")
	if err != nil {
		return err
	}
	stream, err := adminv1.NewAdminClient(conn).LoadImages(ctx)
	if err != nil {
		return err
	}
	if err := sendArchive(stream, name, in); err != nil {
		return err
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	for _, img := range resp.GetImages() {
		fmt.Fprintln(cmd.OutOrStdout(), img.GetId(), strings.Join(img.GetRepoTags(), " "))
	}
	return nil
}

func sendArchive(stream grpc.ClientStreamingClient[adminv1.LoadImagesRequest, adminv1.LoadImagesResponse], name string, in io.Reader) error {
	buf := make([]byte, loadChunk)
	msg := &adminv1.LoadImagesRequest{Reference: name}
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 || msg.Reference != "" {
			msg.Data = buf[:n]
			if sendErr := stream.Send(msg); errors.Is(sendErr, io.EOF) {
				return nil // the server ended the call; its error comes with the answer
			} else if sendErr != nil {
				return sendErr
			}
			msg = &adminv1.LoadImagesRequest{}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("read archive: %w", err)
		}
	}
}

func pullImage(ctx context.Context, conn *grpc.ClientConn, cmd *cobra.Command, args []string) error {
	user, err := cmd.Flags().GetString("username")
	if err != nil {
		return err
	}
	stream, err := adminv1.NewAdminClient(conn).PullImage(ctx, &adminv1.PullImageRequest{
		Image: args[0], Username: user, Password: os.Getenv("PODWRIGHT_REGISTRY_PASSWORD"),
	})
	if err != nil {
		return err
	}
	bar := newBar(os.Stderr)
	defer bar.end()
	for {
		msg, err := stream.Recv()
		if err != nil {
			return err
		}
		if id := msg.GetImageId(); id != "" {
			bar.end()
			fmt.Fprintln(cmd.OutOrStdout(), id)
			return nil
		}
		bar.show(msg)
	}
}

// bar shows progress on one line of a terminal; elsewhere it is silent.
type bar struct {
	out   *bufio.Writer
	drawn bool
}

func newBar(f *os.File) *bar {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return &bar{}
	}
	return &bar{out: bufio.NewWriter(f)}
}

func (b *bar) show(p *adminv1.PullImageResponse) {
	if b.out == nil {
		return
	}
	const width = 30
	filled := 0
	if p.GetBytesTotal() > 0 {
		filled = int(min(p.GetBytesDone(), p.GetBytesTotal()) * width / p.GetBytesTotal())
	}
	fmt.Fprintf(b.out, "\r\x1b[K%-11s [%s%s] %s / %s, layer %d of %d", p.GetPhase(), strings.Repeat("=", filled), strings.Repeat(" ", width-filled),
		size(p.GetBytesDone()), size(p.GetBytesTotal()), p.GetLayersDone(), p.GetLayersTotal())
	b.out.Flush()
	b.drawn = true
}

func (b *bar) end() {
	if b.drawn {
		fmt.Fprint(b.out, "\r\x1b[K")
		b.out.Flush()
		b.drawn = false
	}
}

func listImages(ctx context.Context, conn *grpc.ClientConn, cmd *cobra.Command, _ []string) error {
	resp, err := criv1.NewImageServiceClient(conn).ListImages(ctx, &criv1.ListImagesRequest{})
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tSIZE")
	for _, img := range resp.GetImages() {
		names := img.GetRepoTags()
		if len(names) == 0 {
			names = img.GetRepoDigests()
		}
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		for _, name := range names {
			fmt.Fprintf(w, "%s\t%s\t%s\n", name, shortID(img.GetId()), size(int64(img.GetSize())))
		}
	}
	return w.Flush()
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

func removeImages(ctx context.Context, conn *grpc.ClientConn, cmd *cobra.Command, args []string) error {
	client := criv1.NewImageServiceClient(conn)
	for _, ref := range args {
		found, err := client.ImageStatus(ctx, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: ref}})
		if err != nil {
			return err
		}
		if found.GetImage() == nil {
			return fmt.Errorf("image %q: not found", ref)
		}
		if _, err := client.RemoveImage(ctx, &criv1.RemoveImageRequest{Image: &criv1.ImageSpec{Image: ref}}); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), found.GetImage().GetId())
	}
	return nil
}

// size writes bytes as people read them, in powers of 1024.
func size(n int64) string {
	value, unit := float64(n), 0
	for units := "KMGT"; value >= 1024 && unit < len(units); unit++ {
		value /= 1024
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %ciB", value, " KMGT"[unit])
}
