// Package export serves files over NBD: fixed newstyle handshake, read-only, simple and
// structured replies.
//
// The way of a read. The connection's reader goroutine takes every request that its 64 KiB
// buffer holds, checks each, charges its bytes to the budget, and submits the batch to the
// File at once. The File completes reads in any order, from any goroutine. Finished replies
// queue at the connection's sender and leave together, many in one writev: written by the
// reader for what completed inside Submit, by a completer that finds the writer idle and no
// other read outstanding, otherwise by the connection's writer goroutine. Only that one ever
// waits for a slow client. A header is made only when its data is there or has failed.
//
//	negotiation.go   options: what a client may ask before it reads; no data is read here
//	transmission.go  requests: decode, check, charge, submit
//	reply.go         replies: one header, or chunks of data, holes and errors
//	status.go        BLOCK_STATUS, from the File's extents
//	readahead.go     what is read before it is asked for
//	cache.go         CACHE: feeds that, and the File's own caches
//	aside.go         what may wait for a disk: status, CACHE
//	sender.go        replies: gather, writev, give back
//	budget.go        bytes in flight, for the whole server and per connection
//	tls.go           STARTTLS with certificates
//	access.go        who may use an export: networks, users, groups, certificate names
//	terms.go         what a handshake is held to: exports, limits, TLS
//	update.go        another configuration: who lives on and who leaves
//	server.go        listeners, admission, Shutdown
//	alive.go         whether the accept loops go round
//
// The package sees a file through the interface File and knows nothing of filesystems.
package export
