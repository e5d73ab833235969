// Package nbdwire encodes and decodes what NBD puts on a socket: the greeting, options and
// their replies, requests, simple and structured replies. It does no I/O, keeps no state, and never
// allocates by a number that a peer sent: every decoder gets the bytes that arrived, checks
// their length first, and returns an error for anything malformed.
//
// Numbers and header structs come from github.com/pojntfx/go-nbd/pkg/protocol; those that it
// lacks stand in consts.go. Names and sections are those of the NBD protocol document
// (NetworkBlockDevice/nbd doc/proto.md). Both halves are here, the server's and the client's,
// so that tests can run one against the other.
package nbdwire
