package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	adminv1 "github.com/podwright/podwright/cri/admin/v1"
)

// watchInterval is how often -w looks.
const watchInterval = time.Second

func opsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ops", Short: "List what the daemon is doing now, at which step, since when, and what it waits for", Args: cobra.NoArgs, RunE: withDaemon(listOps),
	}
	addOutput(cmd)
	cmd.Flags().BoolP("watch", "w", false, "look again every second, until interrupted")
	return cmd
}

func listOps(ctx context.Context, conn *grpc.ClientConn, cmd *cobra.Command, _ []string) error {
	write, err := asked(cmd, writeOpsTable, writeOpsJSON)
	if err != nil {
		return err
	}
	watch, err := cmd.Flags().GetBool("watch")
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		resp, err := adminv1.NewAdminClient(conn).ListOperations(ctx, &adminv1.ListOperationsRequest{})
		if err != nil {
			return err
		}
		if !first && cmd.Flag("output").Value.String() == "table" {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		if err := write(cmd.OutOrStdout(), operations(resp, time.Now())); err != nil || !watch {
			return err
		}
		select {
		case <-time.After(watchInterval):
		case <-ctx.Done():
			return nil
		}
	}
}

// operation is one line of the list; its JSON is what -o json promises.
type operation struct {
	Kind        string    `json:"kind"`
	Name        string    `json:"name"`
	ID          string    `json:"id,omitempty"`
	StartedAt   time.Time `json:"startedAt"`
	AgeSeconds  float64   `json:"ageSeconds"`
	Step        string    `json:"step"`
	StepSeconds float64   `json:"stepSeconds"`
	WaitsFor    []wait    `json:"waitsFor"`
}

type wait struct {
	Kind   string     `json:"kind"`
	Name   string     `json:"name,omitempty"`
	PID    int32      `json:"pid,omitempty"`
	Detail string     `json:"detail,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
}

func operations(resp *adminv1.ListOperationsResponse, now time.Time) []operation {
	list := []operation{}
	for _, op := range resp.GetOperations() {
		started, step := time.Unix(0, op.GetStartedAt()), time.Unix(0, op.GetStepStartedAt())
		line := operation{
			Kind: op.GetKind(), Name: op.GetName(), ID: op.GetId(), StartedAt: started, Step: op.GetStep(),
			AgeSeconds: max(now.Sub(started).Seconds(), 0), StepSeconds: max(now.Sub(step).Seconds(), 0), WaitsFor: []wait{},
		}
		for _, w := range op.GetWaitsFor() {
			next := wait{Kind: w.GetKind(), Name: w.GetName(), PID: w.GetPid(), Detail: w.GetDetail()}
			if w.GetUntil() != 0 {
				until := time.Unix(0, w.GetUntil())
				next.Until = &until
			}
			line.WaitsFor = append(line.WaitsFor, next)
		}
		list = append(list, line)
	}
	return list
}

func writeOpsJSON(out io.Writer, list []operation) error {
	return writeJSON(out, map[string]any{"operations": list})
}

func writeOpsTable(out io.Writer, list []operation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "OPERATION\tNAME\tID\tAGE\tSTEP\tFOR\tWAITS FOR")
	for _, op := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", op.Kind, plain(op.Name), shortID(op.ID), seconds(op.AgeSeconds), op.Step, seconds(op.StepSeconds),
			waitText(op.WaitsFor, op.StartedAt.Add(time.Duration(op.AgeSeconds*float64(time.Second)))))
	}
	return w.Flush()
}

// waitText is what people read: CNI plugin bridge ADD (pid 4242, stopped by a signal; at most 48s).
func waitText(waits []wait, now time.Time) string {
	var all []string
	for _, w := range waits {
		text := strings.TrimSpace(w.Kind + " " + plain(w.Name))
		var facts []string
		if w.PID != 0 {
			facts = append(facts, "pid "+strconv.Itoa(int(w.PID)))
		}
		if w.Detail != "" {
			facts = append(facts, plain(w.Detail))
		}
		if w.Until != nil {
			facts = append(facts, "at most "+seconds(max(w.Until.Sub(now).Seconds(), 0)))
		}
		if len(facts) > 0 {
			text += " (" + strings.Join(facts, ", ") + ")"
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// plain keeps what a process calls itself from drawing on the terminal.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
