package kernelnbd

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// The family's name, version and multicast group, and its commands.
const (
	familyName    = "nbd"
	familyVersion = 1
	groupName     = "nbd_mc_group"

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdLinkDead    = 4
	cmdStatus      = 5
)

// Attributes of the commands, then of what is nested in them.
const (
	attrIndex       = 1  // u32: N of /dev/nbdN; left out in CONNECT: the kernel chooses
	attrSize        = 2  // u64, bytes
	attrBlockSize   = 3  // u64, bytes: the logical and physical sector of the device
	attrTimeout     = 4  // u64, seconds that a request may take
	attrServerFlags = 5  // u64: transmission flags
	attrSockets     = 7  // nested: sockItem, each nested: sockFD u32
	attrDeadConn    = 8  // u64, seconds that requests wait for a new connection when all are dead
	attrDevices     = 9  // nested: deviceItem, each nested: deviceIndex u32, deviceConnected u8
	attrBackend     = 10 // string: who serves; sysfs shows it. Linux 5.14 and later

	sockItem = 1
	sockFD   = 1

	deviceItem      = 1
	deviceIndex     = 1
	deviceConnected = 2
)

// family is what the kernel's controller says of the family "nbd".
type family struct {
	id    uint16 // the type of its messages
	group uint32 // its multicast group; 0: none
}

// familyRequest is the body that asks the controller for the family.
func familyRequest() []byte {
	return appendString(appendGeneric(nil, unix.CTRL_CMD_GETFAMILY, 1), unix.CTRL_ATTR_FAMILY_NAME, familyName)
}

// decodeFamily decodes the attributes of the answer.
func decodeFamily(attrs []byte) (family, error) {
	var f family
	err := eachAttr(attrs, func(typ uint16, data []byte) error {
		switch typ {
		case unix.CTRL_ATTR_FAMILY_ID:
			id, err := number(data, 2)
			f.id = uint16(id)
			return err
		case unix.CTRL_ATTR_MCAST_GROUPS:
			return eachAttr(data, func(_ uint16, item []byte) error { return f.addGroup(item) })
		}
		return nil
	})
	if err == nil && f.id < unix.NLMSG_MIN_TYPE {
		err = fmt.Errorf("%w: family id %d", errWire, f.id)
	}
	return f, err
}

// addGroup takes the number of one multicast group, if it is the one that we know by name.
func (f *family) addGroup(attrs []byte) error {
	name, id := "", uint64(0)
	err := eachAttr(attrs, func(typ uint16, data []byte) (err error) {
		switch typ {
		case unix.CTRL_ATTR_MCAST_GRP_NAME:
			name = text(data)
		case unix.CTRL_ATTR_MCAST_GRP_ID:
			id, err = number(data, 4)
		}
		return err
	})
	if name == groupName {
		f.group = uint32(id)
	}
	return err
}

// setup is what CONNECT and RECONFIGURE tell the kernel.
type setup struct {
	index     int           // -1: the kernel chooses
	size      uint64        // bytes; 0 in RECONFIGURE: as it is
	blockSize uint32        // bytes
	timeout   time.Duration // of a request
	deadConn  time.Duration // of the device without a connection
	flags     uint16        // transmission flags
	sockets   []int         // descriptors of this process
	backend   string
}

// connect is the body of CONNECT.
func (s setup) connect() []byte {
	b := appendGeneric(nil, cmdConnect, familyVersion)
	if s.index >= 0 {
		b = appendUint32(b, attrIndex, uint32(s.index))
	}
	b = appendUint64(b, attrSize, s.size)
	b = appendUint64(b, attrBlockSize, uint64(s.blockSize))
	b = appendUint64(b, attrServerFlags, uint64(s.flags))
	return s.common(b)
}

// reconfigure is the body of RECONFIGURE: the kernel puts the sockets in the place of dead ones and leaves
// alone those for which there is no place.
func (s setup) reconfigure() []byte {
	return s.common(appendUint32(appendGeneric(nil, cmdReconfigure, familyVersion), attrIndex, uint32(s.index)))
}

func (s setup) common(b []byte) []byte {
	b = appendUint64(b, attrTimeout, seconds(s.timeout))
	b = appendUint64(b, attrDeadConn, seconds(s.deadConn))
	b = appendString(b, attrBackend, s.backend)
	var items []byte
	for _, fd := range s.sockets {
		items = appendNested(items, sockItem, appendUint32(nil, sockFD, uint32(fd)))
	}
	return appendNested(b, attrSockets, items)
}

// onIndex is the body of DISCONNECT and STATUS.
func onIndex(cmd uint8, index int) []byte {
	return appendUint32(appendGeneric(nil, cmd, familyVersion), attrIndex, uint32(index))
}

// decodeIndex returns the device that CONNECT has got or that LINK_DEAD is about.
func decodeIndex(attrs []byte) (int, error) {
	index := -1
	err := eachAttr(attrs, func(typ uint16, data []byte) error {
		if typ != attrIndex {
			return nil
		}
		n, err := number(data, 4)
		if err == nil && n > math.MaxInt32 {
			err = fmt.Errorf("%w: device index %d", errWire, n)
		}
		index = int(n)
		return err
	})
	if err == nil && index < 0 {
		err = fmt.Errorf("%w: no device index", errWire)
	}
	return index, err
}

// decodeStatus returns whether the device index is configured, or held open, by its list of devices.
func decodeStatus(attrs []byte, index int) (bool, error) {
	used := false
	err := eachAttr(attrs, func(typ uint16, data []byte) error {
		if typ != attrDevices {
			return nil
		}
		return eachAttr(data, func(_ uint16, item []byte) error {
			n, connected, err := decodeDevice(item)
			if err == nil && n == uint64(index) && connected {
				used = true
			}
			return err
		})
	})
	return used, err
}

func decodeDevice(item []byte) (index uint64, connected bool, err error) {
	index = math.MaxUint64
	err = eachAttr(item, func(typ uint16, data []byte) error {
		size, into := 4, &index
		var flag uint64
		switch typ {
		case deviceIndex:
		case deviceConnected:
			size, into = 1, &flag
		default:
			return nil
		}
		n, err := number(data, size)
		*into = n
		connected = connected || flag != 0
		return err
	})
	return index, connected, err
}

// seconds rounds up: the kernel counts in whole ones.
func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }
