package selinux

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// maxCategories is what policies have: c0 to c1023.
const maxCategories = 1024

// pair is two categories, low below high. Neither of two different pairs dominates the other, so that who has one may use
// nothing of who has the other (mcs(8)).
type pair struct{ low, high int }

func (p pair) String() string { return fmt.Sprintf("c%d,c%d", p.low, p.high) }

// pairs knows which are taken, by whom.
type pairs struct {
	categories int

	mu      sync.Mutex // mu guards what follows.
	holders map[pair]int
	held    map[string][]pair // by owner
}

func newPairs(categories int) *pairs {
	if categories <= 0 || categories > maxCategories {
		categories = maxCategories
	}
	return &pairs{categories: categories, holders: map[pair]int{}, held: map[string][]pair{}}
}

// take gives owner a pair that nobody has, by chance: one that is free again is not the next to be taken, and files that
// its last owner left behind stay nobody's for a while.
func (s *pairs) take(owner string) (pair, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := s.categories * (s.categories - 1) / 2
	if total > 0 {
		start := rand.IntN(total)
		for i := range total {
			if p := numbered((start + i) % total); s.holders[p] == 0 {
				s.holdLocked(owner, p)
				return p, nil
			}
		}
	}
	return pair{}, fmt.Errorf("%d pairs of %d categories: %w", total, s.categories, ErrExhausted)
}

// numbered counts pairs: {0,1} {0,2} {1,2} {0,3} ...
func numbered(n int) pair {
	high := 1
	for ; n >= high; high++ {
		n -= high
	}
	return pair{n, high}
}

func (s *pairs) hold(owner string, p pair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holdLocked(owner, p)
}

func (s *pairs) holdLocked(owner string, p pair) {
	if slices.Contains(s.held[owner], p) {
		return
	}
	s.held[owner] = append(s.held[owner], p)
	s.holders[p]++
}

func (s *pairs) release(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.held[owner] {
		if s.holders[p]--; s.holders[p] == 0 {
			delete(s.holders, p)
		}
	}
	delete(s.held, owner)
}

// sensitivity is a level without categories: the lower one of a range.
func sensitivity(level string) string {
	low, _, _ := strings.Cut(level, "-")
	s, _, _ := strings.Cut(low, ":")
	return s
}

// pairOf reads a level that is two categories, however it is written: "s0:c2,c1", "s0:c1.c2", "s0-s0:c1,c2".
func pairOf(level string) (pair, bool) {
	if _, high, ranged := strings.Cut(level, "-"); ranged {
		level = high
	}
	_, list, _ := strings.Cut(level, ":")
	var all []int
	for _, item := range strings.Split(list, ",") {
		from, to, ranged := strings.Cut(item, ".")
		first, ok := category(from)
		last := first
		if ok && ranged {
			last, ok = category(to)
		}
		if !ok || last < first || last-first > 1 {
			return pair{}, false
		}
		for c := first; c <= last; c++ {
			if !slices.Contains(all, c) {
				all = append(all, c)
			}
		}
	}
	if len(all) != 2 {
		return pair{}, false
	}
	return pair{min(all[0], all[1]), max(all[0], all[1])}, true
}

func category(text string) (int, bool) {
	digits, ok := strings.CutPrefix(text, "c")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n >= 0
}
