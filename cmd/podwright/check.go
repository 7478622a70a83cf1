package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
)

// checkState is how a property of the host suits podwright.
type checkState string

const (
	stateOK      checkState = "ok"
	stateLimited checkState = "limited" // podwright runs; something that pods may ask for is refused or weaker
	stateMissing checkState = "missing" // podwright can't run pods
)

// hostCheck is one property of the host.
type hostCheck struct {
	Name  string     `json:"name"`
	State checkState `json:"state"`
	Found string     `json:"found"`
	Do    string     `json:"do,omitempty"` // what would change it
}

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check", Short: "Look whether this host can run pods: what is there, what is missing, what to do about it; exit code 1 if pods cannot run",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			return check(cmd.Context(), cmd, cfg)
		},
	}
	addOutput(cmd)
	return cmd
}

func check(ctx context.Context, cmd *cobra.Command, cfg config.Config) error {
	write, err := asked(cmd, writeChecks, writeChecksJSON)
	if err != nil {
		return err
	}
	klog.LogToStderr(false) // what the daemon would log is in the answers
	klog.SetOutput(io.Discard)
	list := hostChecks(ctx, cfg)
	if err := write(cmd.OutOrStdout(), list); err != nil {
		return err
	}
	missing := 0
	for _, c := range list {
		if c.State == stateMissing {
			missing++
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d checks: pods cannot run on this host", missing, len(list))
	}
	return nil
}

func writeChecksJSON(out io.Writer, list []hostCheck) error {
	return writeJSON(out, map[string]any{"checks": list})
}

func writeChecks(out io.Writer, list []hostCheck) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tCHECK\tFOUND\tTO DO")
	for _, c := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.State, c.Name, plain(c.Found), plain(c.Do))
	}
	return w.Flush()
}
