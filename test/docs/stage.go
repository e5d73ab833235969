package docs

import (
	"net"
	"os"
	"path/filepath"
)

// Stage makes what stands in for the places that pages name, below dir, and gives the pairs for Options.Replace: of
// directories (/mnt/rescue is there, too), of the ports 9810 and 10809 of this machine, and of disks, by their names in the pages.
func Stage(dir string, disks map[string]string) ([]string, error) {
	var pairs []string
	for name, to := range disks {
		pairs = append(pairs, name, to)
	}
	for name, to := range map[string]string{
		"/etc/btrexport": "etc", "/run/btrexport": "run", "/run/user/1000": "run", "/mnt": "mnt",
	} {
		to = filepath.Join(dir, to)
		if err := os.MkdirAll(to, 0o777); err != nil {
			return nil, err
		}
		pairs = append(pairs, name, to)
	}
	if err := os.Mkdir(filepath.Join(dir, "mnt/rescue"), 0o777); err != nil {
		return nil, err
	}
	for _, port := range []string{"9810", "10809"} {
		free, err := freePort()
		if err != nil {
			return nil, err
		}
		for _, host := range []string{"127.0.0.1:", "localhost:", "port="} {
			pairs = append(pairs, host+port, host+free)
		}
	}
	return pairs, nil
}

// freePort is a port of the loopback address that nobody listens on at the moment.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
