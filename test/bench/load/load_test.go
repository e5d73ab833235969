package load

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"go.uber.org/goleak"

	"github.com/btrexport/btrexport/export/nbdwire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer writes the reply to a request for p, the bytes at h.Offset.
type answer func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte

func simple(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
	var b [nbdwire.SimpleReplyLen]byte
	nbdwire.PutSimpleReply(&b, 0, h.Handle)
	return append(append(out, b[:]...), p...)
}

func data(out []byte, h protocol.TransmissionRequestHeader, flags uint16, off uint64, p []byte) []byte {
	out = nbdwire.AppendChunk(out, nbdwire.Chunk{Flags: flags, Type: nbdwire.ReplyOffsetData, Cookie: h.Handle, Length: uint64(8 + len(p))})
	return append(binary.BigEndian.AppendUint64(out, off), p...)
}

func hole(out []byte, h protocol.TransmissionRequestHeader, off uint64, n int) []byte {
	out = nbdwire.AppendChunk(out, nbdwire.Chunk{Type: nbdwire.ReplyOffsetHole, Cookie: h.Handle, Length: 12})
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(out, off), uint32(n))
}

// pieces sends the second half first, zeroes as holes, and the end by itself.
func pieces(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
	half := len(p) / 2
	out = data(out, h, 0, h.Offset+uint64(half), p[half:])
	if bytes.Equal(p[:half], make([]byte, half)) {
		out = hole(out, h, h.Offset, half)
	} else {
		out = data(out, h, 0, h.Offset, p[:half])
	}
	return nbdwire.AppendChunk(out, nbdwire.Chunk{Flags: nbdwire.ReplyFlagDone, Type: nbdwire.ReplyNone, Cookie: h.Handle})
}

// serve is a server of file's bytes at a socket, until the test ends.
func serve(t *testing.T, file []byte, structured bool, reply answer) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serveConn(c, file, structured, reply)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
	return l.Addr().String()
}

func serveConn(c net.Conn, file []byte, structured bool, reply answer) {
	defer c.Close()
	in := bufio.NewReader(c)
	_, _ = c.Write(nbdwire.AppendGreeting(nil, nbdwire.FlagFixedNewstyle|nbdwire.FlagNoZeroes))
	_, _ = in.Discard(nbdwire.ClientFlagsLen)
	if structured {
		_, _ = in.Discard(nbdwire.OptionLen)
		_, _ = c.Write(nbdwire.AppendOptionReply(nil, nbdwire.OptStructuredReply, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil))
	}
	_, _ = in.Discard(nbdwire.OptionLen + len("x"))
	_, _ = c.Write(nbdwire.AppendExportName(nil, uint64(len(file)), 1, false))
	for {
		var b [nbdwire.RequestLen]byte
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return
		}
		h, err := nbdwire.DecodeRequest(b[:])
		if err != nil {
			return
		}
		if _, err := c.Write(reply(nil, h, file[h.Offset:h.Offset+uint64(h.Length)])); err != nil {
			return
		}
	}
}

// runMain runs a job as its own process would.
func runMain(t *testing.T, j Job) (Result, error) {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Main(t.Context(), strings.NewReader(string(text)+"\ngo\n"), &out); err != nil {
		return Result{}, err
	}
	rest, ok := strings.CutPrefix(out.String(), "ready\n")
	if !ok {
		t.Fatalf("output %q: want ready first", out.String())
	}
	var r Result
	if err := json.Unmarshal([]byte(rest), &r); err != nil {
		t.Fatal(err)
	}
	return r, nil
}

// content is a file with a run of zeroes, and its path.
func content(t *testing.T) ([]byte, string) {
	t.Helper()
	file := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range file {
		if i < 256<<10 || i > 512<<10 {
			file[i] = byte(rng.Uint32())
		}
	}
	path := filepath.Join(t.TempDir(), "want")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, path
}

func TestMainReadsEverything(t *testing.T) {
	file, path := content(t)
	for _, c := range []struct {
		name  string
		job   Job
		reply answer
		want  int64 // requests
	}{
		{"sequential", Job{Connections: 1, Depth: 4, Block: 64 << 10}, simple, 16},
		{"one at a time", Job{Connections: 1, Depth: 1, Block: 4096, Random: true, Seed: 7}, simple, 256},
		{"a number of requests, more than there are blocks", Job{Connections: 1, Depth: 32, Block: 4096, Random: true, Requests: 300}, simple, 300},
		{"chunks and holes", Job{Connections: 1, Depth: 4, Block: 64 << 10, Structured: true}, pieces, 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.job.Socket, c.job.Export, c.job.Want, c.job.Limit = serve(t, file, c.job.Structured, c.reply), "x", path, time.Hour
			r, err := runMain(t, c.job)
			if err != nil {
				t.Fatal(err)
			}
			if r.Requests != c.want || r.Bytes != c.want*int64(c.job.Block) || r.Compared != r.Bytes {
				t.Errorf("got %+v, want %d requests", r, c.want)
			}
		})
	}
}

// A server that errs in any way must fail the run.
func TestMainRefuses(t *testing.T) {
	file, path := content(t)
	const bad = 777777
	within := func(h protocol.TransmissionRequestHeader) bool {
		return h.Offset <= bad && bad < h.Offset+uint64(h.Length)
	}
	for _, c := range []struct {
		name       string
		structured bool
		reply      answer
		want       string
	}{
		{"wrong byte", false, func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
			if within(h) {
				p = bytes.Clone(p)
				p[bad-h.Offset] ^= 1
			}
			return simple(out, h, p)
		}, "wrong byte at offset 777777"},
		{"error", false, func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
			out = simple(out, h, p)
			if within(h) {
				out[7] = 5
			}
			return out
		}, "server says error 5"},
		{"cookie of nobody", false, func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
			h.Handle++
			return simple(out, h, p)
		}, "not in flight"},
		{"hole where bytes are", true, func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
			return hole(out, h, h.Offset, len(p))
		}, "wrong byte at offset 0"},
		{"reply that ends early", true, func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
			return data(out, h, nbdwire.ReplyFlagDone, h.Offset, p[1:])
		}, "wrong byte"},
		{"half a reply", true, func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
			return data(out, h, nbdwire.ReplyFlagDone, h.Offset, p[:len(p)/2])
		}, "reply ends after 32768 bytes"},
		{"chunk outside of its request", true, func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
			return data(out, h, nbdwire.ReplyFlagDone, h.Offset+1, p)
		}, "lies outside"},
		{"twice the same half", true, func(out []byte, h protocol.TransmissionRequestHeader, p []byte) []byte {
			for range 3 {
				out = data(out, h, 0, h.Offset, p[:len(p)/2])
			}
			return out
		}, "lies outside"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := runMain(t, Job{Socket: serve(t, file, c.structured, c.reply), Export: "x", Want: path, Structured: c.structured,
				Connections: 1, Depth: 2, Block: 64 << 10, Limit: time.Hour})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want %q in it", err, c.want)
			}
		})
	}
}
