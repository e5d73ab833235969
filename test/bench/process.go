package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	startTime = 60 * time.Second // a slow device has to deliver what opening reads
	stopTime  = 20 * time.Second
)

// command makes a process in a session of its own: the kernel's scheduler shares the cores between sessions
// (sched_autogroup), and no server may take from the share of its load. The process dies with this one.
func command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = stopTime
	return cmd
}

// server is a running contender.
type server struct {
	cmd    *exec.Cmd
	output bytes.Buffer  // complete when ended is closed
	ended  chan struct{} // closed when the process has ended
}

// startServer starts a server and waits until it accepts at the socket.
func startServer(ctx context.Context, args []string, socket string) (*server, error) {
	s := &server{cmd: command(ctx, args), ended: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	for end := time.Now().Add(startTime); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			return s, c.Close()
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("%s: %v before it accepted: %s", args[0], s.cmd.ProcessState, s.said())
		default:
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("%s: does not accept", args[0]), s.stop())
		}
	}
}

// stop ends the server. One that does not end in time, or ends badly, is an error.
func (s *server) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(stopTime):
		_ = s.cmd.Process.Kill()
		<-s.ended
		return fmt.Errorf("%s: did not end after SIGTERM: %s", s.cmd.Args[0], s.said())
	}
	status := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if s.cmd.ProcessState.Success() || status.Signaled() && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return fmt.Errorf("%s: %v: %s", s.cmd.Args[0], s.cmd.ProcessState, s.said())
}

// said is what the server wrote; it has ended.
func (s *server) said() string {
	const most = 2000
	t := strings.TrimSpace(s.output.String())
	return t[max(0, len(t)-most):]
}

// observe starts a shell command that looks at a process, and gives it time to begin. end interrupts it and waits.
func observe(ctx context.Context, text string, pid int) (end func(), err error) {
	const beginning = time.Second
	cmd := command(ctx, []string{"sh", "-c", text})
	cmd.Env = append(cmd.Env, fmt.Sprintf("pid=%d", pid))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	time.Sleep(beginning)
	return func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // its session
		_ = cmd.Wait()
	}, nil
}
