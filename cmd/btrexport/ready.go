package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/export/nbdclient"
)

const (
	// defaultMetrics is where the examples and the packages serve metrics.
	defaultMetrics = "127.0.0.1:9810"
	// maxReadyAnswer bounds what is read of /-/ready, in bytes.
	maxReadyAnswer = 1 << 10
)

// errNotReady is a server that answers, and says that it does not serve reads.
var errNotReady = errors.New("not ready")

func (a *app) statusCommand() *cobra.Command {
	var timeout time.Duration
	var secure tlsFlags
	cmd := &cobra.Command{
		Use:   "status [NBD-URI | HOST:PORT]",
		Short: "Is a running server ready: exit status 0 or 1",
		Long: "status asks a running server whether it serves reads. HOST:PORT, or unix:///PATH, is where it serves its metrics, and /-/ready is asked there " +
			"(default: " + defaultMetrics + "). With an NBD-URI it does a handshake for that export; without a name in the URI any server that answers is ready. " +
			"It prints one line and exits 0 if the server is ready, 1 if it is not or can't be reached.\n\n" + exitHelp,
		Example: "  btrexport status\n  btrexport status 192.0.2.7:9810\n  btrexport status 'nbd+unix:///vm1?socket=/run/btrexport/nbd.sock'",
		Args:    arguments(0, 1, "at most one NBD-URI or HOST:PORT"),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	secure.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if timeout <= 0 {
			return usagef("--timeout %v: is not positive (write 5s, for example)", timeout)
		}
		where := defaultMetrics
		if len(args) > 0 {
			where = args[0]
		}
		ask, err := asker(where, &secure)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("no answer within %v", timeout))
		defer cancel()
		if err := ask(ctx); err != nil {
			return connectKind{fmt.Errorf("status %s: %w", where, err)}
		}
		_, err = fmt.Fprintf(a.out, "%s: ready\n", where)
		return err
	}
	return cmd
}

// asker says how to ask the server that where names.
func asker(where string, secure *tlsFlags) (func(context.Context) error, error) {
	if path, ok := strings.CutPrefix(where, "unix://"); ok && path != "" {
		return func(ctx context.Context) error { return askHTTP(ctx, "unix", path) }, nil
	}
	if !strings.Contains(where, "://") {
		if _, _, err := net.SplitHostPort(where); err != nil {
			return nil, usagef("status %s: is neither HOST:PORT nor an NBD-URI (for example %s, or nbd://127.0.0.1/vm1)", where, defaultMetrics)
		}
		return func(ctx context.Context) error { return askHTTP(ctx, "tcp", where) }, nil
	}
	t, err := secure.target(where, uriForms+"; or HOST:PORT or unix:///PATH of its metrics")
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return askNBD(ctx, t) }, nil
}

// askHTTP asks /-/ready: 200 is ready, anything else is not, and its first line says why.
func askHTTP(ctx context.Context, network, address string) error {
	// No proxy and no redirect: this server is asked, no other.
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://btrexport/-/ready", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w (is it running, with --metrics?)", reason(ctx, err))
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReadyAnswer))
	switch {
	case err != nil:
		return reason(ctx, err)
	case resp.StatusCode == http.StatusServiceUnavailable:
		why, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		return fmt.Errorf("%w: %s", errNotReady, why)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%w: the answer to GET /-/ready is %s (is this the metrics address of btrexport?)", errNotReady, resp.Status)
	}
	return nil
}

// askNBD does a handshake. Without a name the list is asked for: a server without a default export, or one
// that keeps its list to itself, has answered and will serve.
func askNBD(ctx context.Context, t nbdclient.Target) error {
	if t.Export == "" {
		if _, err := nbdclient.List(ctx, t); err != nil && !errors.As(err, new(*nbdclient.OptionError)) {
			return err
		}
		return nil
	}
	c, err := nbdclient.Dial(ctx, t)
	if err != nil {
		return err
	}
	return c.Close()
}

// reason is what ended a request: the context's cause if that was it, else the error without the words that
// net/http puts before it.
func reason(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}
