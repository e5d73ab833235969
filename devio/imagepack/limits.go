package imagepack

const (
	defaultBytes = 16 << 30
	defaultFiles = 64

	// maxWindow is what --long (27 bits) needs. The decoder keeps that much memory at most, once.
	maxWindow = 1 << 27
	// overhead bounds what an archive may hold beside file data, per file: headers, PAX records and
	// sparse map; and trailer is that at its end, where tar fills up its last record.
	overhead = 2 << 20
	trailer  = 1 << 20
)

// Limits bound what a pack may hold. The zero value is a good choice.
type Limits struct {
	Bytes     int64 // sum of the images' sizes, holes included; 0 means 16 GiB
	Files     int   // number of images; 0 means 64
	Overwrite bool  // replace regular files of the same names instead of refusing
}

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	if l.Files == 0 {
		l.Files = defaultFiles
	}
	return l
}

// stream is the largest size of the archive itself, decompressed.
func (l Limits) stream() int64 {
	return l.Bytes + int64(l.Files+1)*overhead + trailer
}
