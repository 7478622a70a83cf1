package spec

import (
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	userField  = "image.config.User"
	maxGroups  = 65536 // NGROUPS_MAX, setgroups(2)
	maxUserLen = 256
)

// identity is whom a container's first process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32 // gid first, the others ascending
	home     string   // from passwd; "" where it says nothing usable
}

// account is one line of /etc/passwd, of a file an image brought.
type account struct {
	name     string
	uid, gid string // unparsed: only the line that is chosen must make sense
	home     string
}

// resolveUser finds user, group and groups: by the request, else by the image's USER, else root. Names and primary
// groups come from the image's own files. A number is never looked up as a name and a name that is not there is an
// error, so nothing falls back to root (B48, CVE-2024-40635, CVE-2026-46680, CVE-2026-30892).
func resolveUser(security *criv1.LinuxContainerSecurityContext, imageUser string, passwd, group []byte) (identity, error) {
	user, groupName, field := "0", "", userField
	switch {
	case security.GetRunAsUsername() != "":
		user, field = security.GetRunAsUsername(), contextField+"run_as_username"
		if isNumber(user) {
			return identity{}, invalid(field, user, "a number is no user name")
		}
	case security.GetRunAsUser() != nil:
		user, field = strconv.FormatInt(security.GetRunAsUser().GetValue(), 10), contextField+"run_as_user"
	case imageUser != "":
		var err error
		if user, groupName, err = splitUser(imageUser); err != nil {
			return identity{}, err
		}
	}
	id, account, err := lookUpUser(field, user, passwd)
	if err != nil {
		return identity{}, err
	}
	if groupName != "" {
		if id.gid, err = lookUpGroup(groupName, group); err != nil {
			return identity{}, err
		}
	}
	if asked := security.GetRunAsGroup(); asked != nil {
		id.gid = uint32(asked.GetValue())
	}
	for _, g := range security.GetSupplementalGroups() {
		id.groups = append(id.groups, uint32(g))
	}
	if security.GetSupplementalGroupsPolicy() == criv1.SupplementalGroupsPolicy_Merge && account.name != "" {
		more, err := groupsOf(account.name, group)
		if err != nil {
			return identity{}, err
		}
		id.groups = append(id.groups, more...)
	}
	return id, id.orderGroups()
}

// orderGroups puts the primary group first and the others once: a process whose primary group is missing among the
// supplementary ones passes checks that deny that group (CVE-2022-2995, CVE-2023-25173).
func (id *identity) orderGroups() error {
	sort.Slice(id.groups, func(i, j int) bool { return id.groups[i] < id.groups[j] })
	id.groups = slices.Compact(id.groups)
	id.groups = slices.DeleteFunc(id.groups, func(g uint32) bool { return g == id.gid })
	id.groups = slices.Insert(id.groups, 0, id.gid)
	if len(id.groups) > maxGroups {
		return invalid(contextField+"supplemental_groups", "", "more than %d with those of the image", maxGroups)
	}
	return nil
}

// ImageUser splits an image's USER as ImageStatus reports it: a uid or a name, nothing for "" (B48).
func ImageUser(user string) (uid *int64, name string, err error) {
	if user == "" {
		return nil, "", nil
	}
	name, _, err = splitUser(user)
	if err != nil || !isNumber(name) {
		return nil, name, err
	}
	id, err := parseID(userField, name)
	if err != nil {
		return nil, "", err
	}
	number := int64(id)
	return &number, "", nil
}

// splitUser parses USER[:GROUP] of an image.
func splitUser(s string) (user, group string, err error) {
	user, group, both := strings.Cut(s, ":")
	if user == "" || both && group == "" || strings.Contains(group, ":") || hasControl(s) || len(s) > maxUserLen {
		return "", "", invalid(userField, s, "want user or user:group")
	}
	return user, group, nil
}

// isNumber says whether s means a number to anyone: digits, with a sign or not.
func isNumber(s string) bool {
	digits := strings.TrimLeft(s, "+-")
	return digits != "" && strings.Trim(digits, "0123456789") == ""
}

// parseID reads an id in plain decimal. A sign or an overflow is an error, never a name.
func parseID(field, s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > math.MaxInt32 {
		return 0, invalid(field, s, "no id: want 0 to %d", math.MaxInt32)
	}
	return uint32(n), nil
}

func lookUpUser(field, user string, passwd []byte) (identity, account, error) {
	if isNumber(user) {
		uid, err := parseID(field, user)
		if err != nil {
			return identity{}, account{}, err
		}
		for line := range accounts(passwd) {
			if n, err := parseID(field, line.uid); err == nil && n == uid {
				gid, err := parseID("image.passwd", line.gid)
				return identity{uid: uid, gid: gid, home: line.home}, line, err
			}
		}
		return identity{uid: uid}, account{}, nil // a user no file names: group 0, as the field does
	}
	for line := range accounts(passwd) {
		if line.name != user {
			continue
		}
		uid, err := parseID("image.passwd", line.uid)
		if err != nil {
			return identity{}, account{}, err
		}
		gid, err := parseID("image.passwd", line.gid)
		return identity{uid: uid, gid: gid, home: line.home}, line, err
	}
	return identity{}, account{}, invalid(field, user, "no such user in the image")
}

func lookUpGroup(name string, group []byte) (uint32, error) {
	if isNumber(name) {
		return parseID(userField, name)
	}
	for fields := range lines(group, 3) {
		if fields[0] == name {
			return parseID("image.group", fields[2])
		}
	}
	return 0, invalid(userField, name, "no such group in the image")
}

// groupsOf lists the groups whose members name the user.
func groupsOf(user string, group []byte) ([]uint32, error) {
	var gids []uint32
	for fields := range lines(group, 4) {
		if !slices.Contains(strings.Split(fields[3], ","), user) {
			continue
		}
		gid, err := parseID("image.group", fields[2])
		if err != nil {
			return nil, err
		}
		if gids = append(gids, gid); len(gids) > maxGroups {
			return nil, invalid("image.group", user, "in more than %d groups", maxGroups)
		}
	}
	return gids, nil
}

// accounts yields the lines of passwd(5) that have the fields a look-up needs.
func accounts(passwd []byte) func(func(account) bool) {
	return func(yield func(account) bool) {
		for f := range lines(passwd, 4) {
			line := account{name: f[0], uid: f[2], gid: f[3]}
			// A home with a control character could become more than one line of whatever copies it (CVE-2022-4318).
			if len(f) > 5 && strings.HasPrefix(f[5], "/") && !hasControl(f[5]) {
				line.home = f[5]
			}
			if !yield(line) {
				return
			}
		}
	}
}

// lines yields the fields of each line that has a name and at least min fields; what else a hostile or odd file
// holds is passed over.
func lines(file []byte, min int) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range strings.SplitSeq(string(file), "\n") {
			if strings.HasPrefix(line, "#") {
				continue
			}
			if fields := strings.Split(line, ":"); len(fields) >= min && fields[0] != "" && !yield(fields) {
				return
			}
		}
	}
}
