package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"btrexport": main})
}

// patience bounds every wait of a script; nothing asserts how much of it was needed.
const patience = 20 * time.Second

// TestScripts runs the commands as a user does. Beside testscript's own words there are those below.
func TestScripts(t *testing.T) {
	golden, err := filepath.Abs("../../testdata/images")
	if err != nil {
		t.Fatal(err)
	}
	samples, err := filepath.Abs("sample")
	if err != nil {
		t.Fatal(err)
	}
	commands := trustCommands()
	maps.Copy(commands, map[string]func(*testscript.TestScript, bool, []string){
		"golden":   cmdGolden,
		"fails":    cmdFails,
		"status":   cmdStatus,
		"same":     cmdSame,
		"answers":  cmdAnswers,
		"scrape":   cmdScrape,
		"partsame": cmdPartSame,
		"hold":     cmdHold,
		"appears":  cmdAppears,
		"term":     cmdTerm,
		"hangup":   cmdHangup,
		"disk":     cmdDisk,
		"feature":  cmdFeature,
		"ruinroot": cmdRuinRoot,
	})
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("GOLDEN", golden)
			e.Setenv("SAMPLES", samples)
			e.Setenv("TZ", "UTC")
			e.Setenv("GORACE", "atexit_sleep_ms=0") // else every command of a race-built binary ends a second late
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "driver" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			_, err := os.Stat("/sys/module/nbd")
			return err == nil, nil
		},
		Cmds: commands,
	})
}

// golden NAME DIR unpacks a golden image.
func cmdGolden(ts *testscript.TestScript, _ bool, args []string) {
	m, err := fsreadtest.ReadManifest(ts.Getenv("GOLDEN"), args[0])
	ts.Check(err)
	dir := ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(dir, 0o755))
	_, err = fsreadtest.Unpack(ts.Getenv("GOLDEN"), m, dir)
	ts.Check(err)
}

// fails CODE MESSAGE ARG... runs btrexport: it must exit with CODE, print nothing, and say exactly
// "btrexport: MESSAGE" on one line. In MESSAGE an … stands for any text without a blank.
func cmdFails(ts *testscript.TestScript, _ bool, args []string) {
	runFor(ts, args[0], args[2:])
	want := strings.ReplaceAll(regexp.QuoteMeta(args[1]), "…", `\S+`)
	got := ts.ReadFile("stderr")
	if ok, err := regexp.MatchString("^btrexport: "+want+"\n$", got); err != nil || !ok {
		ts.Fatalf("%v\n got %swant btrexport: %s", args[2:], got, args[1])
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("%v printed %q", args[2:], out)
	}
}

// status CODE ARG... runs btrexport, which must exit with CODE.
func cmdStatus(ts *testscript.TestScript, _ bool, args []string) { runFor(ts, args[0], args[1:]) }

func runFor(ts *testscript.TestScript, code string, args []string) {
	want, err := strconv.Atoi(code)
	ts.Check(err)
	err = ts.Exec("btrexport", args...)
	got := 0
	if ee := (*exec.ExitError)(nil); errors.As(err, &ee) {
		got = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%v: exit status %d, want %d", args, got, want)
	}
}

// same IMAGE PATH FILE holds a file against what the kernel showed of PATH in an image.
func cmdSame(ts *testscript.TestScript, _ bool, args []string) {
	want := entry(ts, args[0], args[1])
	b := []byte(ts.ReadFile(args[2]))
	sum := sha256.Sum256(b)
	if got := hex.EncodeToString(sum[:]); got != want.SHA256 || int64(len(b)) != want.Size {
		ts.Fatalf("%s: %d bytes, sha256 %s; want %d bytes, %s", args[2], len(b), got, want.Size, want.SHA256)
	}
}

// partsame IMAGE PATH FILE looks for the SHA-256 of PATH in a text.
func cmdPartSame(ts *testscript.TestScript, _ bool, args []string) {
	if want := entry(ts, args[0], args[1]).SHA256; !strings.Contains(ts.ReadFile(args[2]), want) {
		ts.Fatalf("%s does not hold %s", args[2], want)
	}
}

func entry(ts *testscript.TestScript, image, path string) fsreadtest.Entry {
	dir := ts.Getenv("GOLDEN")
	if image == "sample" {
		dir = ts.Getenv("SAMPLES")
	}
	m, err := fsreadtest.ReadManifest(dir, image)
	ts.Check(err)
	for _, e := range m.Entries {
		if string(e.Path) == path {
			return e
		}
	}
	ts.Fatalf("image %s has no %s", image, path)
	return fsreadtest.Entry{}
}

// answers SOCKET waits until somebody accepts on a unix socket.
func cmdAnswers(ts *testscript.TestScript, _ bool, args []string) {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", ts.MkAbs(args[0]))
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("nobody accepts on %s: %v", args[0], err)
		}
	}
}

// hold URI connects to an export and stays until the end of the script.
func cmdHold(ts *testscript.TestScript, _ bool, args []string) {
	t, err := nbdclient.ParseURI(args[0])
	ts.Check(err)
	t.Address = ts.MkAbs(t.Address)
	c, err := nbdclient.Dial(context.Background(), t)
	ts.Check(err)
	ts.Defer(func() { c.Close() })
}

// appears FILE waits for a file.
func cmdAppears(ts *testscript.TestScript, _ bool, args []string) {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s does not appear", args[0])
		}
	}
}

// term sends SIGTERM to the command that was started last in the background.
func cmdTerm(ts *testscript.TestScript, _ bool, _ []string) {
	all := ts.BackgroundCmds()
	ts.Check(all[len(all)-1].Process.Signal(syscall.SIGTERM))
}

// hangup sends SIGHUP to the command that was started last in the background.
func cmdHangup(ts *testscript.TestScript, _ bool, _ []string) {
	all := ts.BackgroundCmds()
	ts.Check(all[len(all)-1].Process.Signal(syscall.SIGHUP))
}

// scrape SOCKET PATH FILE gets PATH by HTTP from a unix socket into FILE.
func cmdScrape(ts *testscript.TestScript, _ bool, args []string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", ts.MkAbs(args[0]))
	}}}
	r, err := client.Get("http://btrexport" + args[1])
	ts.Check(err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), bytes.TrimSpace(b), 0o644))
}

// ruinroot TREE DEVICE... overwrites every copy of the topmost block of the root or the chunk tree, as the last
// commit has it, and sets OLDER to the generation before and SLOT to the superblock's slot that has it.
func cmdRuinRoot(ts *testscript.TestScript, _ bool, args []string) {
	var dev deviceFlags
	for _, p := range args[1:] {
		dev.devices = append(dev.devices, ts.MkAbs(p))
	}
	f, err := dev.open(context.Background(), slog.New(slog.DiscardHandler), nil)
	ts.Check(err)
	defer f.Close()
	roots, err := f.Roots(context.Background())
	ts.Check(err)
	at := roots[0].Root
	if args[0] == "chunk" {
		at = roots[0].ChunkRoot
	}
	for _, r := range roots {
		if r.Generation == roots[0].Generation-1 {
			ts.Setenv("OLDER", strconv.FormatUint(r.Generation, 10))
			ts.Setenv("SLOT", strconv.Itoa(r.Slot))
		}
	}
	ts.Setenv("NEWEST", strconv.FormatUint(roots[0].Generation, 10))
	ts.Check(ruinAll(f, at, int(f.Info().NodeSize)))
}

// waitFor waits for something that another goroutine does.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never happened")
		}
	}
}
