// Command podwright is the daemon (podwright serve) and the operator's tool: configuration checks and image verbs.
// It holds flags and wiring; what it wires is below.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
)

// version is stamped in by the linker (Makefile).
var version = "unknown"

func main() {
	if err := root().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "podwright:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use: "podwright", Short: "A Kubernetes container runtime (CRI) with its own low-level runtime",
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	cmd.PersistentFlags().String("config", "", "configuration file (default "+config.DefaultPath+", and conf.d/*.toml beside it)")
	cmd.AddCommand(serveCommand(), configCommand(), imageCommand(), keeperCommand(), opsCommand(), explainCommand(), checkCommand(), versionCommand(), unpackCommand())
	return cmd
}

// groupCommand only has verbs below it: alone it shows them, and a word that is none of them is an error.
func groupCommand(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "podwright", version) },
	}
}

func loadConfig(cmd *cobra.Command) (config.Config, error) {
	path, err := cmd.Flags().GetString("config")
	if err != nil {
		return config.Config{}, err
	}
	return config.Load(path)
}

func configCommand() *cobra.Command {
	cmd := groupCommand("config", "Show and check the configuration")
	cmd.AddCommand(
		&cobra.Command{
			Use: "default", Short: "Print the default configuration, every key with its meaning", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				raw, err := config.Default().Marshal()
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(raw)
				return err
			},
		},
		&cobra.Command{
			Use: "check [file]", Short: "Check a configuration with its drop-ins; print what is wrong by key, file and line", Args: cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				path, err := cmd.Flags().GetString("config")
				if err != nil {
					return err
				}
				if len(args) == 1 {
					path = args[0]
				}
				if _, err := config.Load(path); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "ok")
				return nil
			},
		},
	)
	return cmd
}
