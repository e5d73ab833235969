package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// command is a shell command that finds the server in its environment.
type command struct{ text, export, uri, socket string }

// run runs the command with the first export's address in its environment. Its status, where it is not 0,
// is an exitStatus. A context that ends asks the command to end, too, by SIGTERM.
func (c command) run(ctx context.Context, a *app, undo *undoing) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", c.text)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	cmd.Env = append(os.Environ(),
		"uri="+c.uri,
		"nbd=nbd:unix:"+c.socket+":exportname="+c.export,
		"unixsocket="+c.socket)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run sh: %w", err)
	}
	undo.add(func() { _ = cmd.Process.Kill() }) // has ended already, unless a second signal came
	if err := cmd.Wait(); cmd.ProcessState == nil {
		return fmt.Errorf("wait for sh: %w", err)
	}
	if status := statusOf(cmd.ProcessState); status != 0 {
		return exitStatus(status)
	}
	return nil
}

// statusOf is a process's exit status as a shell has it: 128 and the signal's number for one that a signal ended.
func statusOf(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.ExitCode()
}
