package nbdclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// Bounds on what a server may send in answer to one option.
const (
	maxReplyData = 2*nbdwire.MaxString + 64
	maxReplies   = 1 << 16
	maxContexts  = 1 << 10
)

// ErrProtocol is a server that breaks the protocol. Errors wrap it with what was seen.
var ErrProtocol = errors.New("server breaks the NBD protocol")

// OptionError is a server's refusal of an option.
type OptionError struct {
	Option uint32
	Type   uint32 // NBD_REP_ERR_*
	Text   string // the server's own words; may be empty
}

// Error names the option and the reply by their numbers in the NBD document.
func (e *OptionError) Error() string {
	s := fmt.Sprintf("option %d refused: NBD_REP_ERR %d", e.Option, e.Type&^nbdwire.RepErrFlag)
	if e.Text != "" {
		s += fmt.Sprintf(" (%q)", e.Text)
	}
	return s
}

// Info is what a server tells of an export.
type Info struct {
	Name        string // the server's, or the one that was asked for
	Description string
	Size        uint64 // bytes
	Flags       uint16 // transmission flags
	Blocks      nbdwire.BlockSizes
	Structured  bool     // reads are answered in chunks: holes, and errors with a place
	Contexts    []string // metadata contexts that block status can be asked for; they need Structured
}

// ReadOnly tells whether the server refuses writes.
func (i Info) ReadOnly() bool { return i.Flags&nbdwire.FlagReadOnly != 0 }

// MultiConn tells whether several connections see one content.
func (i Info) MultiConn() bool {
	return i.Flags&protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN != 0
}

// Listed is one entry of a server's list.
type Listed struct {
	Name, Description string
}

// session is a connection during the handshake.
type session struct {
	conn net.Conn // under TLS once that is on
	in   *bufio.Reader
	stop func() bool // ends the watch over the context
}

// open connects, exchanges the greeting, and turns TLS on where t has it. Until stop, ctx's end ends the connection.
func open(ctx context.Context, t Target) (*session, error) {
	config, err := t.TLSConfig()
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, t.Network, t.Address)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, in: bufio.NewReaderSize(conn, readBuffer)}
	s.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = s.greet()
	if err == nil && config != nil {
		err = s.startTLS(ctx, config)
	}
	if err != nil {
		return nil, s.abandon(ctx, err)
	}
	return s, nil
}

// abandon closes the connection after err, which is ctx's cause if that was first.
func (s *session) abandon(ctx context.Context, err error) error {
	if !s.stop() && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	_ = s.conn.Close()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("handshake with %s: %w", s.conn.RemoteAddr(), err)
}

func (s *session) greet() error {
	var b [nbdwire.GreetingLen]byte
	if _, err := io.ReadFull(s.in, b[:]); err != nil {
		return err
	}
	flags, err := nbdwire.DecodeGreeting(b[:])
	if err != nil {
		return errors.Join(ErrProtocol, err)
	}
	if flags&nbdwire.FlagFixedNewstyle == 0 {
		return fmt.Errorf("%w: not a fixed newstyle server", ErrProtocol) // and so one without TLS
	}
	answer := uint32(flags & (nbdwire.FlagFixedNewstyle | nbdwire.FlagNoZeroes))
	_, err = s.conn.Write(nbdwire.AppendClientFlags(nil, answer))
	return err
}

// ask sends an option and hands each of its replies up to the ACK to take.
func (s *session) ask(option uint32, data []byte, take func(typ uint32, data []byte) error) error {
	if _, err := s.conn.Write(nbdwire.AppendOption(nil, option, data)); err != nil {
		return s.parting(err)
	}
	for range maxReplies {
		typ, data, err := s.reply(option)
		switch {
		case err != nil:
			return err
		case typ == protocol.NEGOTIATION_TYPE_REPLY_ACK:
			return nil
		case typ&nbdwire.RepErrFlag != 0:
			return &OptionError{Option: option, Type: typ, Text: string(data)}
		}
		if err := take(typ, data); err != nil {
			return errors.Join(ErrProtocol, err)
		}
	}
	return fmt.Errorf("%w: more than %d replies to one option", ErrProtocol, maxReplies)
}

func (s *session) reply(option uint32) (uint32, []byte, error) {
	var b [nbdwire.OptionReplyLen]byte
	if _, err := io.ReadFull(s.in, b[:]); err != nil {
		return 0, nil, err
	}
	h, err := nbdwire.DecodeOptionReply(b[:])
	switch {
	case err != nil:
		return 0, nil, errors.Join(ErrProtocol, err)
	case h.ID != option:
		return 0, nil, fmt.Errorf("%w: reply to option %d, asked %d", ErrProtocol, h.ID, option)
	case h.Length > maxReplyData:
		return 0, nil, fmt.Errorf("%w: reply of %d bytes", ErrProtocol, h.Length)
	}
	data := make([]byte, h.Length)
	_, err = io.ReadFull(s.in, data)
	return h.Type, data, err
}

// extend asks for what a server need not have: structured replies, and which metadata contexts there are.
// An error reply means that it has not.
func (s *session) extend(name string) (Info, error) {
	info := Info{Name: name, Blocks: nbdwire.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: 1 << 25}}
	var refused *OptionError
	err := s.ask(nbdwire.OptStructuredReply, nil, func(typ uint32, _ []byte) error {
		return fmt.Errorf("reply type %d to STRUCTURED_REPLY", typ)
	})
	if errors.As(err, &refused) {
		return info, nil
	}
	if err != nil {
		return Info{}, err
	}
	info.Structured = true
	query := nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: name})
	err = s.ask(nbdwire.OptListMetaContext, query, func(typ uint32, data []byte) error {
		if typ != nbdwire.RepMetaContext {
			return fmt.Errorf("reply type %d to LIST_META_CONTEXT", typ)
		}
		if len(info.Contexts) >= maxContexts {
			return fmt.Errorf("more than %d metadata contexts", maxContexts)
		}
		_, context, err := nbdwire.DecodeMetaContext(data)
		info.Contexts = append(info.Contexts, context)
		return err
	})
	if errors.As(err, &refused) {
		info.Contexts, err = nil, nil
	}
	return info, err
}

// choose runs GO and adds what the server says of the export.
func (s *session) choose(info *Info) error {
	sized := false
	request := nbdwire.AppendInfoRequest(nil, nbdwire.InfoRequest{Name: info.Name, Types: []uint16{
		protocol.NEGOTIATION_TYPE_INFO_NAME,
		protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION,
		protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE,
	}})
	err := s.ask(protocol.NEGOTIATION_ID_OPTION_GO, request, func(typ uint32, data []byte) error {
		if typ != protocol.NEGOTIATION_TYPE_REPLY_INFO {
			return fmt.Errorf("reply type %d to GO", typ)
		}
		i, err := nbdwire.DecodeInfo(data)
		if err != nil {
			return err
		}
		switch i.Type {
		case protocol.NEGOTIATION_TYPE_INFO_EXPORT:
			info.Size, info.Flags, sized = i.Size, i.Flags, true
		case protocol.NEGOTIATION_TYPE_INFO_NAME:
			info.Name = i.Text
		case protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION:
			info.Description = i.Text
		case protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE:
			info.Blocks = i.Blocks
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case !sized:
		return fmt.Errorf("%w: no size in the reply to GO", ErrProtocol)
	case info.Size > math.MaxInt64:
		return fmt.Errorf("%w: size of %d bytes", ErrProtocol, info.Size)
	case info.Flags&protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS == 0:
		return fmt.Errorf("%w: transmission flags %#x", ErrProtocol, info.Flags)
	}
	return nil
}

// List returns what the server behind t offers, in its order. t.Export is ignored.
func List(ctx context.Context, t Target) ([]Listed, error) {
	s, err := open(ctx, t)
	if err != nil {
		return nil, err
	}
	var list []Listed
	err = s.ask(protocol.NEGOTIATION_ID_OPTION_LIST, nil, func(typ uint32, data []byte) error {
		if typ != protocol.NEGOTIATION_TYPE_REPLY_SERVER {
			return fmt.Errorf("reply type %d to LIST", typ)
		}
		name, description, err := nbdwire.DecodeListEntry(data)
		list = append(list, Listed{Name: name, Description: description})
		return err
	})
	if err != nil {
		return nil, s.abandon(ctx, err)
	}
	// The server may close as soon as it has read this.
	_ = s.ask(protocol.NEGOTIATION_ID_OPTION_ABORT, nil, func(uint32, []byte) error { return nil })
	s.stop()
	_ = s.conn.Close()
	return list, nil
}
