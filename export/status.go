package export

import (
	"context"
	"encoding/binary"
	"errors"
	"math/bits"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	// maxDescriptors bounds those of one context in a reply. The document allows 2^20.
	maxDescriptors = 2048
	// maxExtents bounds the extents that one request looks at; what it has by then is the answer.
	maxExtents = 8192
	// extentsAtOnce is how many a File is asked for.
	extentsAtOnce = 256
	// maxKeptDescriptors is what a describer keeps for its next use.
	maxKeptDescriptors = 64
)

// errNoExtents is a File that broke its contract.
var errNoExtents = errors.New("internal error: no extents inside of the file")

// describer makes block status out of extents. One goroutine uses it.
type describer struct {
	extents []Extent
	lists   [len(contexts)]descriptors
}

// descriptors are what one context says of consecutive ranges.
type descriptors struct {
	list []nbdwire.Descriptor
	full bool // the next range differs and has no room
}

// add appends a range, to the last one if that has the same status.
func (d *descriptors) add(length, status uint64, limit int) {
	last := len(d.list) - 1
	switch {
	case d.full:
	case last >= 0 && d.list[last].Status == status:
		d.list[last].Length += length
	case len(d.list) == limit:
		d.full = true
	default:
		d.list = append(d.list, nbdwire.Descriptor{Length: length, Status: status})
	}
}

// describe looks up what q asks for and seals the reply. ErrWait: not without waiting. A tree block that
// can't be read is an error if nothing is known by then, and otherwise ends the answer.
func (d *describer) describe(ctx context.Context, q *request, wait bool) error {
	known, err := d.walk(ctx, q, wait)
	if err != nil && (!known || errors.Is(err, ErrWait)) {
		return err
	}
	q.chunks = q.chunks[:0]
	for i := range contexts {
		if q.contexts.has(i) {
			q.addStatus(contextID(i), d.trimmed(i, q))
		}
	}
	q.finish()
	d.release()
	return nil
}

// walk fills the lists with what the range is made of, as far as they have room, and tells whether there
// is anything in them.
func (d *describer) walk(ctx context.Context, q *request, wait bool) (known bool, err error) {
	limit := maxDescriptors
	if q.flags&nbdwire.CmdFlagReqOne != 0 {
		limit = 1
	}
	for i := range d.lists {
		d.lists[i] = descriptors{list: d.lists[i].list[:0]}
	}
	if d.extents == nil {
		d.extents = make([]Extent, extentsAtOnce)
	}
	e := q.owner.export
	at, end := q.offset, q.offset+q.length
	for seen := 0; at < min(end, e.fileSize); {
		if seen >= maxExtents {
			return true, nil
		}
		n, err := e.File.Extents(ctx, at, min(end, e.fileSize), wait, d.extents)
		if err == nil && n == 0 {
			err = errNoExtents
		}
		if err != nil {
			return at > q.offset, err
		}
		for _, x := range d.extents[:n] {
			if x.Length == 0 {
				return at > q.offset, errNoExtents
			}
			// Behind the file's end the rest of its last sector is told with it.
			x.Length = min(x.Length, min(end, e.sectorsEnd())-at)
			if at += x.Length; d.add(q, x, limit) || at >= min(end, e.fileSize) {
				break
			}
		}
		if d.full(q, limit) {
			return true, nil
		}
		seen += n
	}
	if at < end { // the padding behind the file
		d.add(q, Extent{Length: end - at, Kind: ExtentHole}, limit)
	}
	return true, nil
}

// add adds an extent to the lists of the contexts that q asks for and tells whether that was the last.
func (d *describer) add(q *request, x Extent, limit int) bool {
	for i := range contexts {
		if q.contexts.has(i) {
			d.lists[i].add(x.Length, contexts[i].status(x), limit)
		}
	}
	return d.full(q, limit)
}

// full tells whether more extents are of no use: with room for one descriptor when every list is full, so
// that each tells all it can; otherwise when one is, so that they tell of about the same range.
func (d *describer) full(q *request, limit int) bool {
	all, some := true, false
	for i := range contexts {
		if q.contexts.has(i) {
			all = all && d.lists[i].full
			some = some || d.lists[i].full
		}
	}
	return all || some && limit > 1
}

// trimmed is the list of one context, which ends at a multiple of 512 bytes unless that leaves nothing or
// the export ends there.
func (d *describer) trimmed(i int, q *request) []nbdwire.Descriptor {
	list := d.lists[i].list
	end := q.offset
	for _, x := range list {
		end += x.Length
	}
	odd := end % sectorBytes
	if end == q.owner.export.size || end-odd <= q.offset {
		return list
	}
	for odd > 0 {
		last := &list[len(list)-1]
		if last.Length > odd {
			last.Length -= odd
			break
		}
		odd -= last.Length
		list = list[:len(list)-1]
	}
	return list
}

// release lets go of what an unusual answer took.
func (d *describer) release() {
	for i := range d.lists {
		if cap(d.lists[i].list) > maxKeptDescriptors {
			d.lists[i].list = nil
		}
	}
}

// statusBytes is the most that a reply to q may hold for its descriptors: a bound on a charge.
func (q *request) statusBytes() int64 {
	n := min(q.length/sectorBytes+2, maxDescriptors)
	return int64(n) * 16 * int64(bits.OnesCount8(uint8(q.contexts)))
}

// checkStatus wants contexts to tell of and a range inside of the export.
func (q *request) checkStatus() error {
	if q.flags&^nbdwire.CmdFlagReqOne != 0 {
		return errFlags
	}
	if q.contexts == 0 {
		return errNoContext
	}
	return q.checkRange()
}

// maxFilter is the longest payload of a BLOCK_STATUS that can be right: a length, and each context once.
const maxFilter = 8 + 4*len(contexts)

// filter takes the length and the contexts that a BLOCK_STATUS's payload names: u64, and u32 each.
func (q *request) filter(payload []byte) error {
	if len(payload) < 8 || len(payload)%4 != 0 {
		return errFilter
	}
	q.length = binary.BigEndian.Uint64(payload)
	chosen := contextSet(0)
	for at := 8; at < len(payload); at += 4 {
		i := uint64(binary.BigEndian.Uint32(payload[at:])) - 1 // a context's id is its index and 1
		if i >= uint64(len(contexts)) || !q.contexts.has(int(i)) || chosen.has(int(i)) {
			return errFilter
		}
		chosen |= 1 << i
	}
	if chosen == 0 {
		return errFilter
	}
	q.contexts = chosen
	return nil
}

// cost is how many bytes a request holds until its reply has left; 0: it needs nothing of the file.
func (q *request) cost() int64 {
	if q.command == nbdwire.CmdBlockStatus {
		return q.statusBytes()
	}
	return int64(q.read.Length)
}

// described seals the reply to a query that has failed; describe has sealed one that has not.
func (q *request) described(err error) {
	if q.err = err; err == nil {
		return
	}
	if q.owner.life.Err() == nil { // else it ended because nobody takes the answer
		q.logFailure("block status failed")
	}
	q.seal()
}

// describeAside answers a query that must wait for its extents.
func (t *transmission) describeAside(q *request) {
	if t.life.Err() != nil { // nobody takes the answer
		q.err = errDisconnected
		q.seal()
	} else {
		q.described(t.tellAside.describe(t.life, q, true))
	}
	t.ended(q)
}

// waitAside leaves q to describeAside. It counts as outstanding until it is answered.
func (t *transmission) waitAside(q *request) {
	s := t.sender
	q.started = true
	s.mu.Lock()
	s.atFile++
	s.started++
	s.mu.Unlock()
	t.aside.add(q)
}
