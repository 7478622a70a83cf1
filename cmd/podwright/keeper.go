package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/systemd"
	"github.com/podwright/podwright/runtime/wire"
)

func keeperCommand() *cobra.Command {
	cmd := groupCommand("keeper", "Look at, upgrade or end the keeper, the parent of all containers")
	verb := func(use, short string, patience time.Duration, run func(context.Context, *cobra.Command, *keeper.Client) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			return withKeeper(cmd, cfg, patience, run)
		}}
	}
	cmd.AddCommand(
		keeperStartCommand(),
		verb("status", "Print who the keeper is and what it keeps", keeperAnswer, keeperStatus),
		verb("upgrade", "Replace the running keeper by the installed binaries, in place; containers do not notice", keeperWork, keeperUpgrade),
		verb("stop", "End keeper and anchor; refused while anything runs, or while the daemon does (it would start them anew)", keeperWork, keeperStop),
	)
	return cmd
}

// How long a verb waits: for what a keeper says from memory, its greeting too, and for what it has to do.
const (
	keeperAnswer = 5 * time.Second
	keeperWork   = time.Minute
)

// keeperStartCommand is what the keeper's unit executes. What it starts is in the unit's group, and the unit's main process.
func keeperStartCommand() *cobra.Command {
	return &cobra.Command{
		Use: "start", Short: "Start a keeper where none runs and leave it to itself; for its unit, " + systemd.KeeperUnit, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			keeperConfig, err := keeperPrograms(cfg)
			if err != nil {
				return err
			}
			return keeper.Start(keeperConfig)
		},
	}
}

// withKeeper connects to a keeper that runs; it starts none.
func withKeeper(cmd *cobra.Command, cfg config.Config, patience time.Duration, run func(context.Context, *cobra.Command, *keeper.Client) error) error {
	keeperConfig, err := keeperPrograms(cfg)
	if err != nil {
		return err
	}
	keeperConfig.NoStart = true
	keeperConfig.OnExit = func(string, wire.Exit) {} // the daemon is told too
	ctx, cancel := context.WithTimeout(cmd.Context(), keeperAnswer)
	defer cancel()
	client, err := keeper.Connect(ctx, keeperConfig)
	if err != nil {
		return keeperSilent(err, keeperConfig.RunDir, keeperAnswer)
	}
	defer client.Close()
	ctx, cancel = context.WithTimeout(cmd.Context(), patience)
	defer cancel()
	return keeperSilent(run(ctx, cmd, client), keeperConfig.RunDir, patience)
}

// keeperSilent says what it means that no answer came in time.
func keeperSilent(err error, runDir string, patience time.Duration) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("the keeper on %s has not answered within %s: it is stopped or hangs; containers go on, and their ends and output wait for it (%w)", runDir, patience, err)
}

func keeperStatus(ctx context.Context, cmd *cobra.Command, client *keeper.Client) error {
	hello, err := client.Hello(ctx)
	if err != nil {
		return err
	}
	children, err := client.List(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "keeper %d, anchor %d, build %s, %d processes\n", hello.KeeperPID, hello.AnchorPID, hello.Build, len(children))
	for _, child := range children {
		state := fmt.Sprintf("pid %d", child.Process.PID)
		if child.Exit != nil {
			state = fmt.Sprintf("exited %d", child.Exit.Code)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s, %d log lines lost\n", child.Kind, child.ID, state, child.LostLines)
	}
	return nil
}

func keeperUpgrade(ctx context.Context, cmd *cobra.Command, client *keeper.Client) error {
	hello, err := client.Upgrade(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "keeper %d now runs build %s\n", hello.KeeperPID, hello.Build)
	return nil
}

func keeperStop(ctx context.Context, cmd *cobra.Command, client *keeper.Client) error {
	cfg, err := loadConfig(cmd)
	if err != nil {
		return err
	}
	lock, err := lockInstance(cfg.RunDir)
	if err != nil {
		return fmt.Errorf("stop the daemon first, or it starts the keeper anew: %w", err)
	}
	defer lock.Close()
	return client.Shutdown(ctx)
}

func keeperPrograms(cfg config.Config) (keeper.Config, error) {
	keeperBinary, err := binary(cfg.Runtime.KeeperBinary, "podwright-keeper")
	if err != nil {
		return keeper.Config{}, err
	}
	initBinary, err := binary(cfg.Runtime.InitBinary, "podwright-init")
	if err != nil {
		return keeper.Config{}, err
	}
	return keeper.Config{RunDir: filepath.Join(cfg.RunDir, "keeper"), KeeperBinary: keeperBinary, InitBinary: initBinary}, nil
}

// keeperPatience is how long the socket stays closed for a keeper that does not answer. One that has to be started, or
// replaces itself, needs less.
const keeperPatience = 3 * time.Second

// connectKeeper reaches the node's keeper, or starts one in a cgroup of its own, outside every pod's.
func (s *services) connectKeeper(ctx context.Context, manager *podsandbox.Manager) (*keeper.Client, error) {
	keeperConfig, err := keeperPrograms(s.cfg)
	if err != nil {
		return nil, err
	}
	keeperConfig.OnExit, keeperConfig.OnFresh, keeperConfig.Patience = manager.OnExit, manager.OnFresh, keeperPatience
	if s.hasKeeperUnit(ctx) {
		keeperConfig.Start = s.startKeeperUnit
		return keeper.Connect(ctx, keeperConfig)
	}
	group := s.cfg.Cgroup.KeeperParent
	if err := s.cgroups.Create(ctx, group, nil); err != nil {
		return nil, fmt.Errorf("make the keeper's cgroup: %w", err)
	}
	keeperConfig.CgroupProcs, err = cgroupProcs(s.cgroups, group)
	for _, f := range keeperConfig.CgroupProcs {
		s.closers = append(s.closers, f.Close)
	}
	if err != nil {
		return nil, err
	}
	return keeper.Connect(ctx, keeperConfig)
}

// hasKeeperUnit says whether the keeper is one of systemd's units. It is that of the daemon's unit: a daemon that was
// started otherwise may have another configuration.
func (s *services) hasKeeperUnit(ctx context.Context) bool {
	if s.systemd == nil || systemd.OwnUnit() != systemd.DaemonUnit {
		return false
	}
	installed, err := s.systemd.Installed(ctx, systemd.KeeperUnit)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not learn whether the keeper has a unit; the daemon starts it itself where there is none yet")
	}
	return installed
}

func (s *services) startKeeperUnit(ctx context.Context) error {
	err := s.systemd.StartUnit(ctx, systemd.KeeperUnit)
	if err != nil {
		klog.FromContext(ctx).Error(err, "The keeper's unit does not start; the daemon starts the keeper in its own group")
	}
	return err
}

func cgroupProcs(groups *cgroup.Manager, group string) ([]*os.File, error) {
	mounts := []string{groups.UnifiedMountPoint()}
	if groups.Version() == 1 {
		mounts = nil
		for _, h := range groups.V1Hierarchies() {
			mounts = append(mounts, h.MountPoint)
		}
	}
	var files []*os.File
	for _, mount := range mounts {
		f, err := os.OpenFile(filepath.Join(mount, group, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			return files, fmt.Errorf("open the keeper's cgroup: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}
