// Package metrics counts what btrexport does, for Prometheus, and serves the counts over HTTP.
//
// Whoever counts declares an interface of built-in types; Device, Filesystem, Export and Listener satisfy
// them, so this package imports none of ours and none imports it but cmd. A handle resolves its label sets
// once: the methods that run per read or per request look no label up and do
// not allocate.
//
// Every series of a label set exists, at zero, from the call that makes its handle. A counter born at one is
// invisible to increase(), and the first lost block would raise no alert.
//
// What others count for themselves, and what is no count (the devices of a filesystem, its caches, the requests under
// way), a scrape asks them for: see Registry.Watch.
//
// What is counted where: device reads by the devio queue that made them, checksum failures, retries, repairs
// and losses by fsread/volume, requests by export when the reply is complete. All methods may be called
// concurrently.
package metrics
