package cgroup

import (
	"fmt"
	"strconv"
	"strings"
)

// maxListMember is above any CONFIG_NR_CPUS and MAX_NUMNODES.
const maxListMember = 1 << 16

// idList is a set of CPUs or memory nodes, as ranges in the order given.
type idList [][2]int

// parseList reads the kernel's list format, "0-3,8": cpuset(7), "List format".
// Strides ("0-31:2/8") are left out: the kubelet never sends them and this is
// the form that can be compared.
func parseList(s string) (idList, error) {
	var list idList
	if s == "" {
		return nil, nil
	}
	if len(s) > 4096 {
		return nil, fmt.Errorf("longer than 4096 bytes")
	}
	for _, part := range strings.Split(s, ",") {
		low, high, isRange := strings.Cut(part, "-")
		first, err := parseMember(low)
		if err != nil {
			return nil, err
		}
		last := first
		if isRange {
			if last, err = parseMember(high); err != nil {
				return nil, err
			}
		}
		if last < first {
			return nil, fmt.Errorf("range %q runs backwards", part)
		}
		list = append(list, [2]int{first, last})
	}
	return list, nil
}

func parseMember(s string) (int, error) {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	n, err := strconv.Atoi(s)
	if err != nil || n >= maxListMember {
		return 0, fmt.Errorf("%q is out of range", s)
	}
	return n, nil
}

// within reports whether every member of l is one of other.
func (l idList) within(other idList) bool {
	has := map[int]bool{}
	for _, r := range other {
		for n := r[0]; n <= r[1]; n++ {
			has[n] = true
		}
	}
	for _, r := range l {
		for n := r[0]; n <= r[1]; n++ {
			if !has[n] {
				return false
			}
		}
	}
	return true
}
