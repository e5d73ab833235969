package kernelnbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestConnectBytes holds CONNECT against the layout of include/uapi/linux/nbd-netlink.h, written out.
func TestConnectBytes(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes are those of a little-endian machine")
	}
	s := setup{index: 2, size: 0x1000, blockSize: 512, flags: 3, timeout: 1, deadConn: 60e9, sockets: []int{7, 8}, backend: "abc"}
	got := appendMessage(nil, message{typ: 27, flags: 5, seq: 9, body: s.connect()})
	want := []byte("\xa0\x00\x00\x00\x1b\x00\x05\x00\x09\x00\x00\x00\x00\x00\x00\x00" + "\x01\x01\x00\x00" +
		"\x08\x00\x01\x00\x02\x00\x00\x00" +
		"\x0c\x00\x02\x00\x00\x10\x00\x00\x00\x00\x00\x00" +
		"\x0c\x00\x03\x00\x00\x02\x00\x00\x00\x00\x00\x00" +
		"\x0c\x00\x05\x00\x03\x00\x00\x00\x00\x00\x00\x00" +
		"\x0c\x00\x04\x00\x01\x00\x00\x00\x00\x00\x00\x00" +
		"\x0c\x00\x08\x00\x3c\x00\x00\x00\x00\x00\x00\x00" +
		"\x08\x00\x0a\x00abc\x00" +
		"\x1c\x00\x07\x80" + "\x0c\x00\x01\x80\x08\x00\x01\x00\x07\x00\x00\x00" + "\x0c\x00\x01\x80\x08\x00\x01\x00\x08\x00\x00\x00")
	want[0] = byte(len(want))
	if !bytes.Equal(got, want) {
		t.Errorf("got\n% x\nwant\n% x", got, want)
	}
	s.index = Any
	if err := eachAttr(s.connect()[genericHeader:], func(typ uint16, _ []byte) error {
		if typ == attrIndex {
			return errors.New("the kernel's choice has an index")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[int64]uint64{0: 0, 1: 1, 1e9: 1, 1e9 + 1: 2, 86400e9: 86400} {
		if got := seconds(time.Duration(in)); got != want {
			t.Errorf("%d ns: got %d s, want %d", in, got, want)
		}
	}
}

// TestMalformed: each bound has its own case.
func TestMalformed(t *testing.T) {
	u16, bad := binary.NativeEndian.AppendUint16, func(_ int, err error) error { return err }
	message := func(n uint32, rest int) []byte {
		return append(binary.NativeEndian.AppendUint32(nil, n), make([]byte, rest)...)
	}
	for name, err := range map[string]error{
		"short message":         second(cutMessage(make([]byte, 15))),
		"message length 15":     second(cutMessage(message(15, 28))),
		"message beyond buffer": second(cutMessage(message(33, 28))),
		"message of 4 GiB":      second(cutMessage(message(math.MaxUint32, 28))),
		"short attribute":       eachAttr([]byte{4, 0, 1}, nil),
		"attribute length 3":    eachAttr(u16(u16(nil, 3), 1), nil),
		"attribute beyond":      eachAttr(u16(u16(nil, 5), 1), nil),
		"no index":              bad(decodeIndex(nil)),
		"index of 2 bytes":      bad(decodeIndex(attr(attrIndex, []byte{1, 0}))),
		"index of 2^31":         bad(decodeIndex(attr(attrIndex, binary.NativeEndian.AppendUint32(nil, 1<<31)))),
		"short error":           message3(unix.NLMSG_ERROR, []byte{0, 0, 0}).failure(),
		"positive error":        message3(unix.NLMSG_ERROR, u32(1)).failure(),
		"error -2^31":           message3(unix.NLMSG_ERROR, u32(math.MinInt32)).failure(),
		"family without id":     third(decodeFamily(nil)),
		"family id 15":          third(decodeFamily(attr(1, u16(nil, 15)))),
		"family id of 4 bytes":  third(decodeFamily(attr(1, u32(27)))),
		"status of 2 bytes":     fourth(decodeStatus(attr(attrDevices, attr(1, attr(1, []byte{1, 2}))), 1)),
	} {
		if !errors.Is(err, errWire) {
			t.Errorf("%s: %v, want errWire", name, err)
		}
	}
	if err := message3(unix.NLMSG_ERROR, u32(-int(syscall.EBUSY))).failure(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("EBUSY: %v", err)
	}
}

func message3(typ uint16, body []byte) message    { return message{typ: typ, body: body} }
func second(_ message, _ []byte, err error) error { return err }
func third(_ family, err error) error             { return err }
func fourth(_ bool, err error) error              { return err }

// FuzzDecode: no datagram makes a decoder panic or run on, messages are those that package syscall sees,
// and what is taken is encoded to itself.
func FuzzDecode(f *testing.F) {
	k := &fake{devices: map[int]*fakeDevice{1: {}}}
	f.Add(datagram(unix.GENL_ID_CTRL, 1, k.family()))
	status, _ := k.do(cmdStatus, nil)
	f.Add(datagram(fakeFamily, 1, status))
	f.Add(datagram(fakeFamily, 0, append([]byte{4, 1, 0, 0}, attr(1, u32(1))...)))
	f.Add(append(datagram(fakeFamily, 1, append([]byte{1, 1, 0, 0}, attr(1, u32(1))...)), datagram(unix.NLMSG_ERROR, 1, u32(0))...))
	f.Add(setup{sockets: []int{3, 4}, backend: "nbd://h:1/x"}.connect())
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &conn{family: family{id: fakeFamily}, seq: 1}
		_, _ = c.answers(b, func(_ uint8, attrs []byte) error {
			_, _ = decodeFamily(attrs)
			_, _ = decodeIndex(attrs)
			_, _ = decodeStatus(attrs, 1)
			return nil
		})
		if index, found := c.deadIn(b); found && index < 0 {
			t.Errorf("LINK_DEAD of device %d", index)
		}
		want, wantErr := syscall.ParseNetlinkMessage(bytes.Clone(b))
		rest, err := b, error(nil)
		for i := 0; len(rest) >= messageHeader; i++ { // package syscall leaves less than a header alone
			var m message
			if m, rest, err = cutMessage(rest); err != nil {
				break
			}
			if wantErr == nil && (i >= len(want) || !bytes.Equal(want[i].Data, m.body) || want[i].Header.Type != m.typ || want[i].Header.Seq != m.seq) {
				t.Fatalf("message %d: %+v, package syscall sees %+v", i, m, want)
			}
			again, _, err := cutMessage(appendMessage(nil, m))
			if err != nil || !bytes.Equal(again.body, m.body) || again.typ != m.typ || again.flags != m.flags || again.seq != m.seq {
				t.Fatalf("encoded again: %+v %v, was %+v", again, err, m)
			}
		}
		if err != nil && wantErr == nil { // it also refuses a last message without its padding
			t.Fatalf("%v, package syscall says %v", err, wantErr)
		}
		var encoded []byte
		if eachAttr(b, func(typ uint16, data []byte) error { encoded = appendAttr(encoded, typ, data); return nil }) == nil {
			n := 0
			if err := eachAttr(encoded, func(uint16, []byte) error { n++; return nil }); err != nil || n == 0 && len(b) > 0 {
				t.Fatalf("encoded again: %v, %d attributes", err, n)
			}
		}
	})
}

// TestAnswers: a request ends at its own acknowledgement, whatever else there is.
func TestAnswers(t *testing.T) {
	k, _ := newFake(t)
	c, err := k.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if c.family != (family{id: fakeFamily, group: 9}) {
		t.Errorf("family %+v", c.family)
	}
	ack := func(seq uint32, n int) []byte { return datagram(unix.NLMSG_ERROR, seq, u32(n)) }
	for _, tc := range []struct {
		name string
		b    func(seq uint32) []byte
		want error
	}{
		{"of an earlier request", func(seq uint32) []byte { return append(ack(seq-1, -1), ack(seq, 0)...) }, nil},
		{"an error", func(seq uint32) []byte { return ack(seq, -int(syscall.ENODEV)) }, syscall.ENODEV},
		{"cut off", func(seq uint32) []byte { return ack(seq, 0)[:18] }, errWire},
		{"overrun", func(seq uint32) []byte { return datagram(unix.NLMSG_OVERRUN, seq, nil) }, errWire},
		{"short generic", func(seq uint32) []byte { return datagram(fakeFamily, seq, []byte{1}) }, errWire},
	} {
		k.mu.Lock()
		k.answer = func(seq uint32, _ uint8) []byte { return tc.b(seq) }
		k.mu.Unlock()
		err := c.ask(context.Background(), onIndex(cmdStatus, 0), ignore)
		if tc.want == nil && err != nil || !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
}
