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

	ExtendedRequestLen = 32                 // request under extended headers; a payload follows only with CmdFlagPayloadLen
	ChunkLen           = 20                 // header of a structured reply's chunk
	ExtendedChunkLen   = ExtendedRequestLen // the same under extended headers
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

// RepMetaContext answers an option with one metadata context ("Option reply types").
const RepMetaContext = uint32(4)

// Errors that answer an option ("Option reply types").
const (
	RepErrPolicy   = uint32(1<<31 | 2)
	RepErrInvalid  = uint32(1<<31 | 3)
	RepErrPlatform = uint32(1<<31 | 4)
	RepErrTLSReqd  = uint32(1<<31 | 5)
	RepErrShutdown = uint32(1<<31 | 7)
	RepErrTooBig   = uint32(1<<31 | 9)

	RepErrExtHeaderReqd = uint32(1<<31 | 10)

	// RepErrFlag is set in every reply type that is an error.
	RepErrFlag = uint32(1 << 31)
)

// Transmission flags that the protocol package does not name ("Transmission flags").
const (
	FlagReadOnly   = uint16(1 << 1)
	FlagSendFlush  = uint16(1 << 2)
	FlagRotational = uint16(1 << 4)
	FlagSendDF     = uint16(1 << 7)
	FlagSendCache  = uint16(1 << 10)

	FlagBlockStatusPayload = uint16(1 << 12)
)

// Flags of requests ("Command flags").
const (
	CmdFlagFUA        = uint16(1 << 0)
	CmdFlagDF         = uint16(1 << 2)
	CmdFlagReqOne     = uint16(1 << 3)
	CmdFlagPayloadLen = uint16(1 << 5)
)

// ReplyFlagDone marks the last chunk of a structured reply ("Structured reply flags").
const ReplyFlagDone = uint16(1 << 0)

// Types of chunks ("Structured reply types").
const (
	ReplyNone           = uint16(0)
	ReplyOffsetData     = uint16(1) // u64 offset, data
	ReplyOffsetHole     = uint16(2) // u64 offset, u32 size
	ReplyBlockStatus    = uint16(5) // u32 context; {u32 length, u32 status}...
	ReplyBlockStatusExt = uint16(6) // u32 context, u32 count; {u64 length, u64 status}...
	ReplyError          = uint16(1<<15 | 1)
	ReplyErrorOffset    = uint16(1<<15 | 2)

	// ReplyErrorFlag is set in every type that is an error.
	ReplyErrorFlag = uint16(1 << 15)
)

// Status bits of the metadata context base:allocation ("Metadata contexts").
const (
	StateHole = uint32(1 << 0)
	StateZero = uint32(1 << 1)
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
