package export_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/imagepack"
	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/volume"
)

// A file of a btrfs filesystem becomes an NBD export. Here a client of ours reads it; any other can.
func Example() {
	dir, err := sample()
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	var devs []volume.Device
	for _, name := range []string{"disk0.img", "disk1.img"} {
		d, err := devio.Open(filepath.Join(dir, name), devio.Options{})
		if err != nil {
			log.Fatal(err)
		}
		devs = append(devs, d)
	}
	fsys, err := fsread.Open(ctx, devs, fsread.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer fsys.Close()
	sv, err := fsys.DefaultSubvolume(ctx)
	if err != nil {
		log.Fatal(err)
	}
	file, err := sv.OpenFile(ctx, "/@images/vm1.raw")
	if err != nil {
		log.Fatal(err)
	}

	server, err := export.NewServer(export.Options{Exports: []export.Export{{Name: "vm1", File: export.NewFile(file)}}})
	if err != nil {
		log.Fatal(err)
	}
	socket := filepath.Join(dir, "nbd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l, nil) }()

	client, err := nbdclient.Dial(ctx, nbdclient.Target{Network: "unix", Address: socket, Export: "vm1"})
	if err != nil {
		log.Fatal(err)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(client, 0, int64(file.Size())))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes, sha256 %x\n", n, sum.Sum(nil))

	if err := client.Close(); err != nil {
		log.Fatal(err)
	}
	if err := server.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("serving ended:", <-served)
	// Output:
	// 16777216 bytes, sha256 f354639820bd411b44637b0dfe20cbadc0a4a8a9bd97cfba9eb7d0cd42764527
	// serving ended: <nil>
}

// sample does what "btrexport sample DIR" does.
func sample() (dir string, err error) {
	pack, err := os.Open("../cmd/btrexport/sample/sample.tar.zst")
	if err != nil {
		return "", err
	}
	defer pack.Close()
	if dir, err = os.MkdirTemp("", "sample"); err == nil {
		_, err = imagepack.Unpack(pack, dir, imagepack.Limits{})
	}
	return dir, err
}
