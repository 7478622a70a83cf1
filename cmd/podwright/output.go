package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// addOutput gives a verb the flag -o.
func addOutput(cmd *cobra.Command) {
	cmd.Flags().StringP("output", "o", "table", "table or json")
}

// asked is the one of two ways to write that -o names.
func asked[T any](cmd *cobra.Command, table, asJSON func(io.Writer, T) error) (func(io.Writer, T) error, error) {
	switch format, err := cmd.Flags().GetString("output"); {
	case err != nil:
		return nil, err
	case format == "table":
		return table, nil
	case format == "json":
		return asJSON, nil
	default:
		return nil, fmt.Errorf("--output %q: neither table nor json", format)
	}
}

func writeJSON(out io.Writer, v any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
