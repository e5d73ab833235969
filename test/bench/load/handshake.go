package load

import (
	"fmt"
	"io"
	"net"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// handshake takes c to the start of transmission. It reads no byte beyond.
func handshake(c net.Conn, export string, structured bool) error {
	var greeting [nbdwire.GreetingLen]byte
	if _, err := io.ReadFull(c, greeting[:]); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	flags, err := nbdwire.DecodeGreeting(greeting[:])
	if err != nil {
		return err
	}
	flags &= nbdwire.FlagFixedNewstyle | nbdwire.FlagNoZeroes
	if _, err := c.Write(nbdwire.AppendClientFlags(nil, uint32(flags))); err != nil {
		return err
	}
	if structured {
		if err := askStructured(c); err != nil {
			return err
		}
	}
	if _, err := c.Write(nbdwire.AppendOption(nil, nbdwire.OptExportName, []byte(export))); err != nil {
		return err
	}
	answer := make([]byte, nbdwire.ExportNameLen, nbdwire.ExportNameLen+nbdwire.ZeroesLen)
	if flags&nbdwire.FlagNoZeroes == 0 {
		answer = answer[:cap(answer)]
	}
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("export %q: %w", export, err)
	}
	return nil
}

func askStructured(c net.Conn) error {
	if _, err := c.Write(nbdwire.AppendOption(nil, nbdwire.OptStructuredReply, nil)); err != nil {
		return err
	}
	var b [nbdwire.OptionReplyLen]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("structured replies: %w", err)
	}
	h, err := nbdwire.DecodeOptionReply(b[:])
	if err != nil {
		return err
	}
	if h.Type != protocol.NEGOTIATION_TYPE_REPLY_ACK || h.Length != 0 {
		return fmt.Errorf("structured replies: answer %#x of %d bytes", h.Type, h.Length)
	}
	return nil
}
