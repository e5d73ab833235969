// Package nbdclient is a small NBD client: it parses NBD URIs, lists exports, negotiates with
// GO, under TLS where the URI says so, and reads with many requests in flight, by structured replies
// where the server has them, or hands the socket to who does. It checks whatever a server sends and
// ends the connection at the first byte that it cannot account for. Not done: block status, extended
// headers, writing, TLS with pre-shared keys.
package nbdclient
