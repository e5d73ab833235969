package nbdclient_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/export/nbdwire"
)

// TestHandOff: the socket stands where the first request belongs, and outlives the handshake.
func TestHandOff(t *testing.T) {
	data := []byte("0123456789abcdef")
	target := serve(t, data, "a+b/ä")
	info, socket, err := nbdclient.HandOff(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if info.Size != 16 || !info.ReadOnly() || !info.MultiConn() {
		t.Errorf("info %+v", info)
	}
	request := nbdwire.AppendRequest(nil, protocol.TransmissionRequestHeader{Handle: 7, Offset: 4, Length: 6})
	if _, err := socket.Write(request); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, nbdwire.SimpleReplyLen+6)
	if _, err := io.ReadFull(socket, reply); err != nil {
		t.Fatal(err)
	}
	if h, err := nbdwire.DecodeSimpleReply(reply); err != nil || h.Handle != 7 || h.Error != 0 || !bytes.Equal(reply[nbdwire.SimpleReplyLen:], data[4:10]) {
		t.Errorf("reply % x: %+v %v", reply, h, err)
	}

	target.Export = "nosuch"
	if _, f, err := nbdclient.HandOff(t.Context(), target); err == nil || f != nil {
		t.Errorf("export that is not there: %v %v", f, err)
	}
}

// TestHandOffTooMuch: bytes behind the handshake would be lost, and the kernel would be out of step.
func TestHandOffTooMuch(t *testing.T) {
	script := nbdwire.AppendGreeting(nil, nbdwire.FlagFixedNewstyle|nbdwire.FlagNoZeroes)
	script = nbdwire.AppendInfoExport(script, protocol.NEGOTIATION_ID_OPTION_GO, 4096, 3)
	script = nbdwire.AppendOptionReply(script, protocol.NEGOTIATION_ID_OPTION_GO, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	target := scripted(t, append(script, 'x'))
	if _, f, err := nbdclient.HandOff(t.Context(), target); !errors.Is(err, nbdclient.ErrProtocol) || f != nil {
		t.Errorf("got %v %v, want ErrProtocol", f, err)
	}
}

// TestURI: what URI writes is what ParseURI reads, and every spelling of a target has one.
func TestURI(t *testing.T) {
	for in, want := range map[string]string{
		"nbd://h":                             "nbd://h:10809/",
		"nbd://[::1]:5/a%20b%2Fc":             "nbd://[::1]:5/a%20b%2Fc",
		"nbd://[fe80::1%25eth0]/v%6d1":        "nbd://[fe80::1%25eth0]:10809/vm1",
		"nbd+unix:///v+m?x=y&socket=/run/a+b": "nbd+unix:///v%2Bm?socket=/run/a%2Bb",
		"nbd+unix://?socket=s%0a":             "nbd+unix:///?socket=s%0A",
		"nbds://h/a?tls-verify-peer=false&tls-hostname=x%26y&tls-certificates=/p%2Fq&tls-type=x509": "nbds://h:10809/a?tls-certificates=/p/q&tls-hostname=x%26y&tls-verify-peer=0",
		"nbds+unix:///a?tls-certificates=p+q&socket=/s":                                             "nbds+unix:///a?socket=/s&tls-certificates=p%2Bq",
	} {
		first, err := nbdclient.ParseURI(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		again, err := nbdclient.ParseURI(first.URI())
		if first.URI() != want || err != nil || again != first {
			t.Errorf("%s: got %s, which is %+v (%v); want %s", in, first.URI(), again, err, want)
		}
	}
}
