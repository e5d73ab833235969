package nbdwire

// Lengths of the fixed parts of the protocol, in bytes.
const (
	GreetingLen    = 18  // two magics and the handshake flags
	ClientFlagsLen = 4   // what the client answers to the greeting
	OptionLen      = 16  // header of an option; its data follows
	OptionReplyLen = 20  // header of an option's reply; its data follows
	ExportNameLen  = 10  // reply to OptExportName: size and flags
	ZeroesLen      = 124 // behind it, unless both sides set NO_ZEROES
	RequestLen     = 28  // compact request; only CmdWrite has a payload behind it
	SimpleReplyLen = 16  // simple reply; a successful CmdRead has its data behind it
	MaxString      = 4096
)

// Flags of the handshake ("Newstyle negotiation"): the server's are 16 bits, the client's 32,
// their low bits mean the same.
const (
	FlagFixedNewstyle = 1 << 0
	FlagNoZeroes      = 1 << 1
)

// Options that the protocol package does not name ("Option types").
const (
	OptExportName      = uint32(1)
	OptStartTLS        = uint32(5)
	OptStructuredReply = uint32(8)
	OptListMetaContext = uint32(9)
	OptSetMetaContext  = uint32(10)
	OptExtendedHeaders = uint32(11)
)

// Errors that answer an option ("Option reply types").
const (
	RepErrPolicy   = uint32(1<<31 | 2)
	RepErrInvalid  = uint32(1<<31 | 3)
	RepErrPlatform = uint32(1<<31 | 4)
	RepErrTLSReqd  = uint32(1<<31 | 5)
	RepErrShutdown = uint32(1<<31 | 7)
	RepErrTooBig   = uint32(1<<31 | 9)

	// RepErrFlag is set in every reply type that is an error.
	RepErrFlag = uint32(1 << 31)
)

// Transmission flags that the protocol package does not name ("Transmission flags").
const (
	FlagReadOnly  = uint16(1 << 1)
	FlagSendFlush = uint16(1 << 2)
)

// Commands that the protocol package does not name ("Request types").
const (
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdCache       = uint16(5)
	CmdWriteZeroes = uint16(6)
	CmdBlockStatus = uint16(7)
)

// Error values that the protocol package does not name ("Error values"). The document allows
// no others than these, EPERM and EINVAL on the wire.
const (
	EIO       = uint32(5)
	ENOMEM    = uint32(12)
	ENOSPC    = uint32(28)
	EOVERFLOW = uint32(75)
	ENOTSUP   = uint32(95)
	ESHUTDOWN = uint32(108)
)
