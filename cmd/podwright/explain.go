package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/isolation"
)

func explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain container", Short: "Show what isolates a running container: what was asked, what the kernel says holds; exit code 1 if less holds",
		Args: cobra.ExactArgs(1), RunE: withDaemon(explain),
	}
	addOutput(cmd)
	cmd.Flags().Bool(readFilterFlag, false, "read the seccomp filter back from the kernel; this stops the container's first thread for a moment, as a debugger does")
	return cmd
}

const readFilterFlag = "read-filter"

// readFilter puts what the kernel has for a filter into the report. It is done here and not by the daemon: who reads it stops
// the workload.
func readFilter(ctx context.Context, r *isolation.Report) error {
	if r.FilterDigest == "" {
		return nil
	}
	inForce, err := isolation.ReadFilters(ctx, r.PID, r.StartTime)
	if err != nil {
		return err
	}
	r.Confirm(inForce)
	return nil
}

func explain(ctx context.Context, conn *grpc.ClientConn, cmd *cobra.Command, args []string) error {
	write, err := asked(cmd, writeReport, writeReportJSON)
	if err != nil {
		return err
	}
	resp, err := criv1.NewRuntimeServiceClient(conn).ContainerStatus(ctx, &criv1.ContainerStatusRequest{ContainerId: args[0], Verbose: true})
	if err != nil {
		return err
	}
	var info struct {
		Isolation *isolation.Report `json:"isolation"`
		Error     string            `json:"isolationError"`
	}
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil {
		return fmt.Errorf("container %s: %w", args[0], err)
	}
	if info.Isolation == nil && info.Error != "" {
		return fmt.Errorf("container %s: %s", args[0], info.Error)
	}
	if info.Isolation == nil {
		return fmt.Errorf("container %s is %s: only what runs can be looked at", args[0], resp.GetStatus().GetState())
	}
	if wanted, err := cmd.Flags().GetBool(readFilterFlag); err != nil {
		return err
	} else if wanted {
		if err := readFilter(ctx, info.Isolation); err != nil {
			return fmt.Errorf("container %s: %w", args[0], err)
		}
	}
	if err := write(cmd.OutOrStdout(), info.Isolation); err != nil {
		return err
	}
	if n := info.Isolation.Differences(); n > 0 {
		return fmt.Errorf("container %s: %d of %d properties hold less than was asked", args[0], n, len(info.Isolation.Findings))
	}
	return nil
}

func writeReportJSON(out io.Writer, r *isolation.Report) error {
	return writeJSON(out, r)
}

// writeReport marks differences in the first column, where a search for them finds nothing else.
func writeReport(out io.Writer, r *isolation.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tPROPERTY\tASKED\tENFORCED")
	for _, f := range r.Findings {
		mark := ""
		if f.Differs {
			mark = "!!"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", mark, plain(f.Aspect), plain(f.Asked), plain(f.Enforced))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, note := range r.Notes {
		fmt.Fprintln(out, "note:", plain(note))
	}
	return nil
}
