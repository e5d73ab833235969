//go:build linux

package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// server is "btrexport serve" on one port of this host, again and again.
type server struct {
	t       *testing.T
	args    []string
	Port    string
	metrics string // HOST:PORT
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process has ended
}

// newServer starts a server of what args say.
func newServer(t *testing.T, args ...string) *server {
	t.Helper()
	s := &server{t: t, Port: freePort(t), metrics: "127.0.0.1:" + freePort(t)}
	s.args = append([]string{"serve", "-l", "tcp://127.0.0.1:" + s.Port, "--metrics", s.metrics}, args...)
	s.start()
	t.Cleanup(s.kill)
	return s
}

// writeSample writes the images of the embedded sample, and gives the SHA-256 of its /@images/vm1.raw.
func writeSample(ctx context.Context, t *testing.T) (disks []string, sum string) {
	t.Helper()
	dir := t.TempDir()
	must(ctx, t, program(t), "sample", dir)
	return []string{dir + "/disk0.img", dir + "/disk1.img"}, fileSum(t, sampleManifest(t), "@images/vm1.raw")
}

func sampleManifest(t *testing.T) *fsreadtest.Manifest {
	t.Helper()
	m, err := fsreadtest.ReadManifest("../../../cmd/btrexport/sample", "sample")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// freePort is a port that nobody listens on, and that a server can take again after it was killed.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

// start returns when the server accepts.
func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(program(s.t), s.args...)
	log, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		defer close(exited)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			s.t.Log("server: " + lines.Text())
		}
		_ = cmd.Wait()
	}(s.cmd, s.exited)
	for end := time.Now().Add(time.Minute); exec.Command(program(s.t), "status", s.metrics).Run() != nil; time.Sleep(50 * time.Millisecond) {
		select {
		case <-s.exited:
			s.t.Fatal("the server has ended")
		default:
		}
		if time.Now().After(end) {
			s.t.Fatal("the server is not ready")
		}
	}
}

// kill ends the server without a word to its clients.
func (s *server) kill() {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, syscall.ESRCH) && !strings.Contains(err.Error(), "finished") {
		s.t.Error(err)
	}
	<-s.exited
}

// network gives the guest this host at 10.0.2.2.
func network() []string {
	return []string{"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="}
}
