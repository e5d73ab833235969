package docs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience bounds every wait; nothing asserts how much of it was needed.
const patience = time.Minute

// Session is one shell in an empty directory, in which the blocks of a page run one after the other.
type Session struct {
	dir     string
	replace *strings.Replacer
	shell   *exec.Cmd
	in      io.WriteCloser
	ended   chan error // of the shell
	n       int        // commands so far
	status  int        // of the last one that is shown
}

// Options of a Session.
type Options struct {
	Dir string // empty; it must be short enough for the path of a socket in it
	Env []string
	// Replace puts others in the place of devices, directories and ports that a page names: pairs of old and new, in
	// commands and in what they print.
	Replace []string
}

// Start starts the shell. Close ends it and what it left running.
func Start(ctx context.Context, o Options) (*Session, error) {
	s := &Session{dir: o.Dir, replace: strings.NewReplacer(o.Replace...), ended: make(chan error, 1)}
	for _, d := range []string{s.path("out"), s.path("work")} {
		if err := os.Mkdir(d, 0o777); err != nil {
			return nil, err
		}
	}
	s.shell = exec.CommandContext(ctx, "bash", "--noprofile", "--norc", "-s")
	s.shell.Dir = s.path("work")
	s.shell.Env = append(os.Environ(), append([]string{"HOME=" + s.path("work"), "LC_ALL=C.UTF-8", "TZ=UTC"}, o.Env...)...)
	s.shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.shell.Cancel = s.kill
	in, err := s.shell.StdinPipe()
	if err != nil {
		return nil, err
	}
	s.in = in
	if err := s.shell.Start(); err != nil {
		return nil, err
	}
	go func() { s.ended <- s.shell.Wait() }()
	return s, nil
}

func (s *Session) path(name string) string { return filepath.Join(s.dir, name) }

// kill ends the shell and all that it started: they are one process group.
func (s *Session) kill() error { return syscall.Kill(-s.shell.Process.Pid, syscall.SIGKILL) }

// Close ends what runs in the background, and the shell.
func (s *Session) Close() error {
	_, err := io.WriteString(s.in, "kill $(jobs -p) 2>/dev/null\nwait\nexit 0\n")
	if closed := s.in.Close(); !errors.Is(closed, os.ErrClosed) { // Wait closes it too, once the shell has ended
		err = errors.Join(err, closed)
	}
	select {
	case end := <-s.ended:
		return errors.Join(err, end)
	case <-time.After(patience):
		return errors.Join(err, errors.New("the shell does not end"), s.kill(), <-s.ended)
	}
}

// Run runs the commands of a block and holds what they print against what the block says.
func (s *Session) Run(b *Block) error {
	commands := b.Commands()
	for i := range commands {
		c := &commands[i]
		asked := i+1 < len(commands) && strings.HasPrefix(commands[i+1].Text, "echo $?")
		if err := s.run(c, asked); err != nil {
			return fmt.Errorf("%s:%d: %s: %w", b.File, c.Line, c.Text, err)
		}
	}
	return nil
}

// run runs one command. asked: the page shows its exit status, which may be any.
func (s *Session) run(c *Command, asked bool) error {
	s.n++
	out, status := s.path(fmt.Sprintf("out/%d", s.n)), s.path(fmt.Sprintf("out/%d.status", s.n))
	// The status is written under another name first, so that it is whole when it is there. (exit N) is what $? sees.
	_, err := fmt.Fprintf(s.in, "(exit %d)\n{ %s\n} >%s 2>&1 </dev/null\necho $? >%s~; mv %s~ %s\n", s.status, s.replace.Replace(c.Text), out, status, status, status)
	if err != nil {
		return err
	}
	var text string
	err = s.wait(func() (bool, error) {
		b, err := os.ReadFile(status)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		text = strings.TrimSpace(string(b))
		return true, err
	})
	printed, _ := os.ReadFile(out)
	if err != nil {
		return fmt.Errorf("%w; it printed\n%s", err, indent(string(printed)))
	}
	got, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	if !c.Hidden {
		s.status = got
	}
	if got != 0 && !asked {
		return fmt.Errorf("exit status %d; it printed\n%s", got, indent(string(printed)))
	}
	return s.compare(c, out)
}

// compare holds the output of a command against the page; of one that stays, it is waited for.
func (s *Session) compare(c *Command, out string) error {
	if !c.Shown {
		return nil
	}
	want := strings.Split(s.replace.Replace(strings.Join(c.Want, "\n")), "\n")
	if c.Stays() {
		want = append(want, "…")
	}
	var last error
	err := s.wait(func() (bool, error) {
		b, err := os.ReadFile(out)
		last = match(want, string(b))
		return last == nil || !c.Stays(), err
	})
	if last != nil {
		return last
	}
	return err
}

// wait asks done until it says so, the shell ends, or patience does.
func (s *Session) wait(done func() (bool, error)) error {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case err := <-s.ended:
			s.ended <- err
			if ok, doneErr := done(); ok || doneErr != nil { // it wrote the status and left
				return doneErr
			}
			return fmt.Errorf("the shell ended: %v", err)
		default:
		}
		if time.Now().After(end) {
			return errors.New("it does not end")
		}
	}
}
