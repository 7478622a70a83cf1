package isolation

import (
	"slices"
	"strings"
)

// unconfinedLabel is what AppArmor calls no profile.
const unconfinedLabel = "unconfined"

// underProfile says whether a label that AppArmor shows, "name (mode)", confines at least as profile does. A stack of
// profiles ("a//&b") allows what all of them allow; a profile's own parts ("a//hat") are its author's doing. In another
// mode than these two the kernel refuses nothing.
func underProfile(label, profile string) bool {
	if profile == unconfinedLabel {
		return true
	}
	at := strings.LastIndex(label, " (")
	if at < 0 || label[at:] != " (enforce)" && label[at:] != " (kill)" {
		return false
	}
	return slices.ContainsFunc(strings.Split(label[:at], "//&"), func(part string) bool {
		return part == profile || strings.HasPrefix(part, profile+"//")
	})
}
