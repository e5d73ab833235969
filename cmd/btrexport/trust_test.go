package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/export/nbdwire"
)

// trustCommands are the words of scripts about certificates, reloads and passed sockets.
func trustCommands() map[string]func(*testscript.TestScript, bool, []string) {
	r := &readerSet{of: make(map[string]*readers)}
	var p passing
	return map[string]func(*testscript.TestScript, bool, []string){
		"certs":        cmdCerts,
		"subst":        cmdSubst,
		"expand":       cmdExpand,
		"mode":         cmdMode,
		"overtls":      cmdOverTLS,
		"until":        cmdUntil,
		"reading":      func(ts *testscript.TestScript, _ bool, args []string) { r.find(ts).cmdReading(ts, args) },
		"stillreading": func(ts *testscript.TestScript, _ bool, _ []string) { r.find(ts).cmdStillReading(ts) },
		"storm":        cmdStorm,
		"session":      cmdSession,
		"answered":     cmdAnswered,
		"overpipes":    cmdOverPipes,
		"activate":     p.cmdActivate,
		"deactivate":   p.cmdDeactivate,
		"notified":     p.cmdNotified,
		"failed":       p.cmdFailed,
		"unheard":      cmdUnheard,
	}
}

// certs DIR makes a CA, a certificate of localhost, and the clients client (vm-host-1) and other.
func cmdCerts(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, c := range []*x509.Certificate{
		{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign},
		{Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		{Subject: pkix.Name{CommonName: "client"}, DNSNames: []string{"vm-host-1"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		{Subject: pkix.Name{CommonName: "other"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(int64(i+1)), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if ca == nil {
			ca, caKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		ts.Check(err)
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		ts.Check(err)
		name := filepath.Join(dir, c.Subject.CommonName)
		ts.Check(os.WriteFile(name+"-cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
		ts.Check(os.WriteFile(name+"-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	}
}

// subst IN OUT OLD NEW copies a text with another word in it.
func cmdSubst(ts *testscript.TestScript, _ bool, args []string) {
	text := strings.ReplaceAll(ts.ReadFile(args[0]), args[2], args[3])
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o644))
}

// expand FILE... puts the script's directory in the place of $WORK.
func cmdExpand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		cmdSubst(ts, false, []string{name, name, "$WORK", ts.Getenv("WORK")})
	}
}

// mode FILE OCTAL checks permissions.
func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%#o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has the mode %s, want %s", args[0], got, args[1])
	}
}

// overtls SOCKET PKI CLIENT NAME... lists the exports under TLS, with that client's certificate.
func cmdOverTLS(ts *testscript.TestScript, neg bool, args []string) {
	names, err := listOverTLS(ts.MkAbs(args[0]), ts.MkAbs(args[1]), args[2])
	if neg {
		if err == nil {
			ts.Fatalf("TLS was granted and lists %v", names)
		}
		return
	}
	ts.Check(err)
	if got, want := strings.Join(names, " "), strings.Join(args[3:], " "); got != want {
		ts.Fatalf("%s sees %s, want %s", args[2], got, want)
	}
}

func listOverTLS(socket, pki, client string) ([]string, error) {
	var conn net.Conn
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() { conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	hello := nbdwire.AppendOption(nbdwire.AppendClientFlags(nil, 3), nbdwire.OptStartTLS, nil)
	if _, err := conn.Write(hello); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, make([]byte, nbdwire.GreetingLen+nbdwire.OptionReplyLen)); err != nil {
		return nil, err
	}
	config := &tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()}
	ca, err := os.ReadFile(filepath.Join(pki, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	config.RootCAs.AppendCertsFromPEM(ca)
	if client != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(pki, client+"-cert.pem"), filepath.Join(pki, client+"-key.pem"))
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	conn = tls.Client(conn, config)
	if _, err := conn.Write(nbdwire.AppendOption(nil, protocol.NEGOTIATION_ID_OPTION_LIST, nil)); err != nil {
		return nil, err
	}
	var names []string
	for {
		b := make([]byte, nbdwire.OptionReplyLen)
		if _, err := io.ReadFull(conn, b); err != nil {
			return nil, err
		}
		h, err := nbdwire.DecodeOptionReply(b)
		if err != nil || h.Type == protocol.NEGOTIATION_TYPE_REPLY_ACK {
			return names, err
		}
		data := make([]byte, h.Length)
		if _, err := io.ReadFull(conn, data); err != nil {
			return nil, err
		}
		name, _, err := nbdwire.DecodeListEntry(data)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
}

// metricsOf gets /metrics from a unix socket.
func metricsOf(socket string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	r, err := client.Get("http://btrexport/metrics")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// until SOCKET REGEXP waits for a line of the metrics.
func cmdUntil(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile("(?m)" + args[1])
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		got, err := metricsOf(ts.MkAbs(args[0]))
		if err == nil && want.MatchString(got) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s never comes: %v\n%s", args[1], err, got)
		}
	}
}

// readerSet are the readers of scripts that run side by side.
type readerSet struct {
	mu sync.Mutex
	of map[string]*readers // guarded by mu; by the script's directory
}

func (s *readerSet) find(ts *testscript.TestScript) *readers {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := ts.Getenv("WORK")
	if s.of[dir] == nil {
		s.of[dir] = new(readers)
	}
	return s.of[dir]
}

// readers read one export until the script ends.
type readers struct {
	mu    sync.Mutex
	count atomic.Int64
	err   error // guarded by mu: the first read that failed or differed
}

// reading URI starts four clients that read at random and compare.
func (r *readers) cmdReading(ts *testscript.TestScript, args []string) {
	t, err := nbdclient.ParseURI(args[0])
	ts.Check(err)
	t.Address = ts.MkAbs(t.Address)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var want []byte
	for i := range 4 {
		c, err := nbdclient.Dial(context.Background(), t)
		ts.Check(err)
		if i == 0 {
			want = make([]byte, c.Info().Size)
			_, err := c.ReadAt(want, 0)
			ts.Check(err)
		}
		clients.Go(func() {
			defer c.Close()
			r.read(c, want, int64(i), stop)
		})
	}
	ts.Defer(func() { close(stop); clients.Wait() })
}

func (r *readers) read(c *nbdclient.Client, want []byte, seed int64, stop chan struct{}) {
	b := make([]byte, 64<<10)
	for off := seed * 4099; ; off = (off*31 + 65537) % int64(len(want)-len(b)) {
		select {
		case <-stop:
			return
		default:
		}
		_, err := c.ReadAt(b, off)
		if err == nil && !bytes.Equal(b, want[off:off+int64(len(b))]) {
			err = fmt.Errorf("wrong bytes at %d", off)
		}
		if err != nil {
			r.mu.Lock()
			if r.err == nil {
				r.err = err
			}
			r.mu.Unlock()
			return
		}
		r.count.Add(1)
	}
}

// stillreading waits for more reads, and for none that failed.
func (r *readers) cmdStillReading(ts *testscript.TestScript) {
	begin := r.count.Load()
	for end := time.Now().Add(patience); r.count.Load() < begin+20; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("nobody reads any more")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		ts.Fatalf("a read was lost: %v", r.err)
	}
}

// storm N METRICS CONFIG VARIANT... has N configurations loaded, one after the other.
func cmdStorm(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	stamp := regexp.MustCompile(`(?m)^btrexport_config_last_reload_success_timestamp_seconds .*$`)
	for i := range n {
		before, err := metricsOf(ts.MkAbs(args[1]))
		ts.Check(err)
		next := ts.MkAbs(args[2] + ".next")
		ts.Check(os.WriteFile(next, []byte(ts.ReadFile(args[3+i%(len(args)-3)])), 0o644))
		ts.Check(os.Rename(next, ts.MkAbs(args[2])))
		cmdHangup(ts, false, nil)
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			now, err := metricsOf(ts.MkAbs(args[1]))
			ts.Check(err)
			if stamp.FindString(now) != stamp.FindString(before) {
				break
			}
			if time.Now().After(end) {
				ts.Fatalf("reload %d does not end", i)
			}
		}
	}
}

// wire is a session that reads 512 bytes of an export.
func wire(name string) []byte {
	b := nbdwire.AppendClientFlags(nil, 3)
	b = nbdwire.AppendOption(b, protocol.NEGOTIATION_ID_OPTION_GO, nbdwire.AppendInfoRequest(nil, nbdwire.InfoRequest{Name: name}))
	b = nbdwire.AppendRequest(b, protocol.TransmissionRequestHeader{Type: protocol.TRANSMISSION_TYPE_REQUEST_READ, Handle: 7, Length: 512})
	return nbdwire.AppendRequest(b, protocol.TransmissionRequestHeader{Type: protocol.TRANSMISSION_TYPE_REQUEST_DISC})
}

// wireAnswer is the length in bytes of what answers wire.
const wireAnswer = nbdwire.GreetingLen + nbdwire.OptionReplyLen + 12 + nbdwire.OptionReplyLen + nbdwire.SimpleReplyLen + 512

// session FILE NAME writes what a client sends.
func cmdSession(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), wire(args[1]), 0o644))
}

// answered FILE checks what it got.
func cmdAnswered(ts *testscript.TestScript, _ bool, args []string) {
	if err := checkAnswer([]byte(ts.ReadFile(args[0]))); err != nil {
		ts.Fatalf("%v", err)
	}
}

func checkAnswer(b []byte) error {
	if len(b) != wireAnswer {
		return fmt.Errorf("%d bytes of answers, want %d", len(b), wireAnswer)
	}
	h, err := nbdwire.DecodeSimpleReply(b[wireAnswer-512-nbdwire.SimpleReplyLen:])
	if err == nil && (h.Error != 0 || h.Handle != 7) {
		err = fmt.Errorf("reply %+v", h)
	}
	return err
}

// overpipes NAME COMMAND... talks to a command as its parent.
func cmdOverPipes(ts *testscript.TestScript, _ bool, args []string) {
	cmd := scriptCommand(ts, args[1:])
	in, err := cmd.StdinPipe()
	ts.Check(err)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() { _ = cmd.Process.Kill() })
	_, err = in.Write(wire(args[0])) // stays open: the command must end by itself
	ts.Check(err)
	b, err := io.ReadAll(out)
	ts.Check(err)
	ts.Check(cmd.Wait())
	ts.Check(checkAnswer(b))
}

func scriptCommand(ts *testscript.TestScript, args []string) *exec.Cmd {
	path, err := exec.LookPath(args[0])
	ts.Check(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = append(os.Environ(), "BTREXPORT_DEVICES="+ts.Getenv("BTREXPORT_DEVICES"))
	return cmd
}

// passing is a command that was started with sockets.
type passing struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	told   []string
	ended  chan error
}

// activate [NAME:]SOCKET,... COMMAND... starts a command with listening sockets, as systemd does, and waits
// until it is ready or has ended.
func (p *passing) cmdActivate(ts *testscript.TestScript, _ bool, args []string) {
	*p = passing{ended: make(chan error, 1)}
	p.cmd = scriptCommand(ts, append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, args[1:]...))
	var names []string
	for _, s := range strings.Split(args[0], ",") {
		name, path, named := strings.Cut(s, ":")
		if !named {
			name, path = "nbd", s
		}
		_ = os.Remove(ts.MkAbs(path))
		l, err := net.Listen("unix", ts.MkAbs(path))
		ts.Check(err)
		ts.Defer(func() { l.Close() })
		f, err := l.(*net.UnixListener).File()
		ts.Check(err)
		defer f.Close()
		names, p.cmd.ExtraFiles = append(names, name), append(p.cmd.ExtraFiles, f)
	}
	_ = os.Remove(ts.MkAbs("notify"))
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ts.MkAbs("notify"), Net: "unixgram"})
	ts.Check(err)
	ts.Defer(func() { notify.Close() })
	p.cmd.Env = append(p.cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"),
		"NOTIFY_SOCKET="+ts.MkAbs("notify"), "WATCHDOG_USEC=20000")
	p.cmd.Stderr = &p.stderr
	ts.Check(p.cmd.Start())
	ended := p.ended
	go func() {
		err := p.cmd.Wait()
		_ = notify.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // what was sent is there by now
		ended <- err
	}()
	ts.Defer(func() { _ = p.cmd.Process.Kill() })
	messages := make(chan string, 1000)
	go func() {
		defer close(messages)
		b := make([]byte, 4096)
		for {
			n, err := notify.Read(b)
			if err != nil {
				return
			}
			select {
			case messages <- string(b[:n]):
			default:
			}
		}
	}()
	for m := range messages {
		p.told = append(p.told, m)
		if strings.Contains(m, "WATCHDOG=1") {
			break
		}
	}
	p.collect(messages)
}

// collect goes on to gather messages until the command has ended.
func (p *passing) collect(messages chan string) {
	all := make(chan []string, 1)
	go func() {
		var told []string
		for m := range messages {
			told = append(told, m)
		}
		all <- told
	}()
	first, ended := p.told, p.ended
	p.ended = make(chan error, 1)
	go func() {
		err := <-ended
		p.told = append(first, <-all...)
		p.ended <- err
	}()
}

// deactivate ends the command, which must do so with status 0.
func (p *passing) cmdDeactivate(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(p.cmd.Process.Signal(syscall.SIGTERM))
	if err := <-p.ended; err != nil {
		ts.Fatalf("%v\n%s", err, p.stderr.String())
	}
}

// notified TEXT looks for a message to the service manager.
func (p *passing) cmdNotified(ts *testscript.TestScript, _ bool, args []string) {
	if !strings.Contains(strings.Join(p.told, "\n"), args[0]) {
		ts.Fatalf("told %q, want %s", p.told, args[0])
	}
}

// unheard URI COMMAND... starts a server, closes the pipe that it logs to once it serves, and has three clients come
// and go. It must answer them, and end with status 0.
func cmdUnheard(ts *testscript.TestScript, _ bool, args []string) {
	cmd := scriptCommand(ts, args[1:])
	log, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() { _ = cmd.Process.Kill() })
	for lines := bufio.NewScanner(log); lines.Scan() && !strings.Contains(lines.Text(), "msg=serving"); {
	}
	ts.Check(log.Close())
	t, err := nbdclient.ParseURI(args[0])
	ts.Check(err)
	t.Address = ts.MkAbs(t.Address)
	for range 3 {
		c, err := nbdclient.Dial(context.Background(), t)
		ts.Check(err)
		_, err = c.ReadAt(make([]byte, 4096), 0)
		ts.Check(err)
		ts.Check(c.Close())
		time.Sleep(20 * time.Millisecond) // for the line at the connection's end
	}
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	ts.Check(cmd.Wait())
}

// failed CODE REGEXP wants that the command could not start.
func (p *passing) cmdFailed(ts *testscript.TestScript, _ bool, args []string) {
	<-p.ended
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
	lines := bufio.NewScanner(&p.stderr)
	for lines.Scan() {
		if ok, err := regexp.MatchString("^"+args[1]+"$", lines.Text()); ok && err == nil {
			return
		}
	}
	ts.Fatalf("no line is %s:\n%s", args[1], p.stderr.String())
}
