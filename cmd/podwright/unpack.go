package main

import (
	"github.com/spf13/cobra"

	"github.com/podwright/podwright/runtime/image"
)

const unpackVerb = "unpack-layers"

// unpacker is this program, also after another was put in its place on disk.
var unpacker = []string{"/proc/self/exe", unpackVerb}

// unpackCommand is what the daemon starts to unpack an image's layers with; nobody else has a use for it.
func unpackCommand() *cobra.Command {
	return &cobra.Command{
		Use: unpackVerb, Short: "Unpack layers for the daemon", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return image.ServeLayers(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
