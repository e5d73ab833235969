package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/export/kernelnbd"
	"github.com/btrexport/btrexport/export/nbdclient"
)

// maxWait bounds the two timeouts of attach, which the kernel multiplies by its ticks.
const maxWait = 24 * time.Hour

// attachFlags are the flags of attach as they were given.
type attachFlags struct {
	kernelnbd.Options
	tlsFlags
	reconnect bool
}

func (a *app) attachCommand() *cobra.Command {
	var f attachFlags
	cmd := &cobra.Command{
		Use:   "attach NBD-URI /dev/nbdN",
		Short: "Attach an export as a kernel block device (root)",
		Long: "attach puts an export of any NBD server at /dev/nbdN, by the kernel's own client (sudo modprobe nbd), and exits when the device can be used; " +
			"the kernel keeps the connections. With /dev/nbd the kernel chooses the device, and attach prints its name and nothing else. " +
			"An export that is attached there already stays, and its dead connections are replaced; another one is an error.\n\n" +
			"A request that gets no answer for --timeout counts its connection as dead. While all are dead, requests wait for --dead-conn-timeout and then fail. " +
			"With --reconnect attach stays, and replaces dead connections when the server answers again, until the device is detached; " +
			"a signal ends attach and leaves the device attached. NOTIFY_SOCKET is told READY when the device can be used.\n\n" +
			"The kernel speaks no TLS. With nbds:// a process of this program relays between it and the server: with --reconnect it is attach itself, which " +
			"must not end then; else one in the background, whose process id is logged, and which ends when the device is detached or its connections die.\n\n" +
			"Do not swap on a device whose server runs on the same host, nor on one that is relayed.\n\n" + exitHelp,
		Example: "  btrexport attach nbd://192.0.2.7/vm1 /dev/nbd0\n" +
			"  btrexport attach --connections 4 'nbd+unix:///vm1?socket=/run/btrexport/nbd.sock' /dev/nbd\n" +
			"  btrexport attach 'nbds://vmhost/vm1?tls-certificates=/etc/btrexport/pki' /dev/nbd0\n  btrexport detach /dev/nbd0",
		Args: arguments(2, 2, "NBD-URI and /dev/nbdN"),
	}
	p := cmd.Flags()
	p.IntVar(&f.Connections, "connections", 1, "how many connections to make; more than 1 needs a server that allows it")
	p.BoolVar(&f.ReadOnly, "read-only", false, "a read-only device, also if the server takes writes")
	p.Uint32Var(&f.BlockSize, "block-size", 0, "sector of the device in bytes, 512 to 4096 (default: 512, or the server's smallest block)")
	p.DurationVar(&f.Timeout, "timeout", 30*time.Second, "how long a request may take, in whole seconds")
	p.DurationVar(&f.DeadConn, "dead-conn-timeout", 60*time.Second, "how long requests wait for a new connection, in whole seconds; 0s: not at all")
	p.BoolVar(&f.reconnect, "reconnect", false, "stay, and replace connections that die")
	f.tlsFlags.add(cmd)
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		t, err := f.target(args[0], uriForms)
		if err != nil {
			return err
		}
		if err := a.attach(cmd.Context(), t, args[1], f); err != nil {
			return fmt.Errorf("attach %s: %w", args[1], err)
		}
		return nil
	}
	return cmd
}

func (f *attachFlags) check() error {
	switch {
	case f.Connections < 1 || f.Connections > kernelnbd.MaxConnections:
		return usagef("--connections %d: is not from 1 to %d", f.Connections, kernelnbd.MaxConnections)
	case f.Timeout < time.Second || f.Timeout > maxWait:
		return usagef("--timeout %v: is not from 1s to %v", f.Timeout, maxWait)
	case f.DeadConn < 0 || f.DeadConn > maxWait:
		return usagef("--dead-conn-timeout %v: is not from 0s to %v", f.DeadConn, maxWait)
	}
	return nil
}

func (a *app) attach(ctx context.Context, t nbdclient.Target, device string, f attachFlags) error {
	var k kernelnbd.Kernel
	index, err := k.Index(device)
	if err != nil {
		return err
	}
	var w *kernelnbd.Watcher
	if f.reconnect {
		if w, err = k.Subscribe(ctx); err != nil {
			return err
		}
		defer w.Close()
	}
	var background *kernelnbd.Background
	switch {
	case t.TLS.On && f.reconnect:
		relays := &kernelnbd.Relays{Stall: f.Timeout}
		defer relays.Close()
		f.Dialer = relays
	case t.TLS.On:
		background = &kernelnbd.Background{Command: relayCommand(f.Timeout)}
		f.Dialer = background
	}
	d, err := k.Attach(ctx, index, t, f.Options)
	if err != nil {
		return err
	}
	relay := 0
	if background != nil {
		relay = background.PID()
		a.log.Info("relayed in the background", "device", d.Device, "pid", relay, "already", d.Already)
	}
	if d.Info.Size%512 != 0 {
		a.log.Warn("size is no multiple of 512: the device ends before the last bytes (with btrexport as the server, set round_up: 512)", "device", d.Device, "size", d.Info.Size)
	}
	if err := a.printAttached(d, index == kernelnbd.Any, relay); err != nil || !f.reconnect {
		return err
	}
	a.log.Info("watching", "device", d.Device, "uri", d.Backend)
	notify(a.log, "READY=1\nSTATUS=watching "+d.Device)
	err = w.Run(ctx, d, t, f.Options, a.log)
	switch {
	case err == nil:
		a.log.Info("detached", "device", d.Device)
	case ctx.Err() != nil && t.TLS.On:
		a.log.Warn("stopped watching and relaying: the device stays attached, without connections (run the same attach again)", "device", d.Device)
		err = nil
	case ctx.Err() != nil:
		a.log.Info("stopped watching, the device stays attached", "device", d.Device)
		err = nil
	}
	return err
}

// attachedJSON is what attach prints with --json. Size in bytes.
type attachedJSON struct {
	Device      string `json:"device"`
	URI         string `json:"uri"`
	Size        uint64 `json:"size"`
	ReadOnly    bool   `json:"read_only"`
	Connections int    `json:"connections"`
	Already     bool   `json:"already"`
	RelayPID    int    `json:"relay_pid,omitempty"` // of the process in the background that relays under TLS
}

// printAttached prints one line: the device's name alone, for scripts, if the kernel has chosen it.
func (a *app) printAttached(d *kernelnbd.Attached, chosen bool, relay int) error {
	if a.json {
		return printJSON(a.out, attachedJSON{d.Device, d.Backend, d.Info.Size, d.ReadOnly, d.Connections, d.Already, relay})
	}
	line := d.Device
	switch {
	case d.Already:
		line += ": already attached to " + shown(d.Backend)
	case !chosen:
		access := "read-write"
		if d.ReadOnly {
			access = "read-only"
		}
		line += fmt.Sprintf(": attached  %s  %s  %s", iec(d.Info.Size), access, shown(d.Backend))
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}

func (a *app) detachCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "detach /dev/nbdN",
		Short: "Detach what attach has put at a device (root)",
		Long: "detach ends the connections of a kernel NBD device, whoever has attached it. A device that is mounted, used as swap or by another device stays, " +
			"unless --force: what uses it then gets I/O errors. A device that is not attached is no error.\n\n" + exitHelp,
		Example: "  btrexport detach /dev/nbd0",
		Args:    arguments(1, 1, "one /dev/nbdN"),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if it is mounted or otherwise in use")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var k kernelnbd.Kernel
		index, err := k.Index(args[0])
		if err == nil && index == kernelnbd.Any {
			err = kernelnbd.ErrNotDevice
		}
		was := false
		if err == nil {
			was, err = k.Detach(cmd.Context(), index, force)
		}
		if err != nil {
			return fmt.Errorf("detach %s: %w", args[0], err)
		}
		how := "detached"
		if !was {
			how = "is not attached"
		}
		_, err = fmt.Fprintf(a.out, "%s: %s\n", args[0], how)
		return err
	}
	return cmd
}

// attachKind is the exit status and kind of an error of attach or detach; ok tells whether it is one.
func attachKind(err error) (code int, kind string, ok bool) {
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(kernelnbd.ErrNotDevice):
		return exitUsage, "device", true
	case is(nbdclient.ErrCertificates):
		return exitUsage, "certificate", true
	case is(kernelnbd.ErrTLS), is(kernelnbd.ErrMultiConn), is(kernelnbd.ErrBlockSize):
		return exitUsage, "usage", true
	case errors.As(err, new(*kernelnbd.ConnectError)):
		return exitFailed, "connect", true
	case is(kernelnbd.ErrNoDriver):
		return exitFailed, "no-driver", true
	case errors.As(err, new(*kernelnbd.InUseError)):
		return exitFailed, "in-use", true
	case is(kernelnbd.ErrChanged):
		return exitFailed, "changed", true
	}
	return 0, "", false
}
