// Package load is an NBD client that makes load: it asks for blocks of an export, keeps a number of requests in
// flight on one or more connections, and holds every byte that comes against the bytes that the file must have.
// Requests go out in batches, one write for all that became possible by one read of the socket; what comes is
// compared where the socket put it. So the client costs the same for every server, and little.
//
// Its process runs one Job: Main reads it from standard input, connects, says "ready", waits for a line, runs, and
// prints the Result. Who measures takes the time in between.
package load
