// Package faultdev makes devices fail, for tests.
//
// New puts a Dev in front of any device; Mem is a device over bytes in memory. A Dev carries out
// rules: reads that fail, are short, are late, hang or return other bytes than the disk holds. A
// rule has a Match, which reads it concerns, and is in force from the call that adds it until
// Remove. Rules may be added and removed at any time, from any goroutine; a read is judged once,
// when it is submitted.
//
//	for i := 0; ; i++ {
//		dev := faultdev.New(faultdev.Mem("disk", image))
//		rule := dev.Fail(faultdev.Nth(i), unix.EIO)
//		... // either the right bytes or an error
//		if !rule.Fired() {
//			break
//		}
//	}
//
// A failed read behaves as the kernel's: it fails as a whole although it only touches a bad range,
// and what its buffers hold afterwards is rubbish.
package faultdev
