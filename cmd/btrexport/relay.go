package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/export/kernelnbd"
	"github.com/btrexport/btrexport/export/nbdclient"
)

// relayName is the hidden command that relays between the kernel and a server under TLS.
const relayName = "relay-connections"

// relayCommand starts it as this program.
func relayCommand(stall time.Duration) func(nbdclient.Target, int) *exec.Cmd {
	return func(t nbdclient.Target, n int) *exec.Cmd {
		self, err := os.Executable()
		cmd := exec.Command(self)
		cmd.Args = []string{"btrexport", relayName, "--connections", strconv.Itoa(n), "--stall", stall.String(), "--", t.URI()}
		cmd.Err = err
		return cmd
	}
}

func (a *app) relayCommand() *cobra.Command {
	var n int
	var stall time.Duration
	cmd := &cobra.Command{
		Use:    relayName + " NBD-URI",
		Short:  "What attach starts for nbds://; not for people",
		Hidden: true,
		Args:   arguments(1, 1, "one NBD-URI"),
	}
	cmd.Flags().IntVar(&n, "connections", 1, "how many connections to make")
	cmd.Flags().DurationVar(&stall, "stall", 0, "how long the server may take no byte")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t, err := nbdclient.ParseURI(args[0])
		if err != nil {
			return usagef("%w (%s)", err, uriForms)
		}
		if err := kernelnbd.ServeBackground(cmd.Context(), t, n, stall); err != nil {
			return fmt.Errorf("relay: %w (attach starts it)", err)
		}
		return context.Cause(cmd.Context())
	}
	return cmd
}
