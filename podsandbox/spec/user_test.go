package spec

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const testPasswd = `# comment:x:1:1
root:x:0:0:root:/root:/bin/sh
broken:x:notanumber:1
big:x:4294967296:0::/big:
badgid:x:77:-1::/home:
app:x:1000:1001:App:/srv/app:/bin/sh
twice:x:1001:1::/first:
twice:x:1002:2::/second:
short:x:1003:3
evil:x:1004:4::/home` + "\x01" + `:
4242:x:0:0::/root:
relative:x:1005:5::home:
`

const testGroup = `root:x:0:root
wheel:x:10:root,app
data:x:50000:app,other
bad:x:notanumber:unlucky
app:x:1001:
`

func TestResolveUser(t *testing.T) {
	id := func(n int64) *criv1.Int64Value { return &criv1.Int64Value{Value: n} }
	type context = criv1.LinuxContainerSecurityContext
	for _, c := range []struct {
		name     string
		security *context
		image    string
		want     identity
		field    string // of the error
	}{
		{name: "nothing is root", want: identity{groups: []uint32{0, 10}, home: "/root"}},
		{name: "root of no file", security: &context{SupplementalGroupsPolicy: 1}, want: identity{groups: []uint32{0}, home: "/root"}},
		{name: "id in passwd", image: "1000", want: identity{uid: 1000, gid: 1001, groups: []uint32{1001, 10, 50000}, home: "/srv/app"}},
		{name: "id in no file has group 0", image: "123456", want: identity{uid: 123456, groups: []uint32{0}}},
		{name: "name", image: "app", want: identity{uid: 1000, gid: 1001, groups: []uint32{1001, 10, 50000}, home: "/srv/app"}},
		{name: "name and group id", image: "app:7", want: identity{uid: 1000, gid: 7, groups: []uint32{7, 10, 50000}, home: "/srv/app"}},
		{name: "id and group name", image: "5:data", want: identity{uid: 5, gid: 50000, groups: []uint32{50000}}},
		{name: "first of two", image: "twice", want: identity{uid: 1001, gid: 1, groups: []uint32{1}, home: "/first"}},
		{name: "no home field", image: "short", want: identity{uid: 1003, gid: 3, groups: []uint32{3}}},
		{name: "control character in home (CVE-2022-4318)", image: "evil", want: identity{uid: 1004, gid: 4, groups: []uint32{4}}},
		{name: "relative home", image: "relative", want: identity{uid: 1005, gid: 5, groups: []uint32{5}}},
		{name: "request over image", security: &context{RunAsUser: id(1001)}, image: "app:7", want: identity{uid: 1001, gid: 1, groups: []uint32{1}, home: "/first"}},
		{name: "request's name", security: &context{RunAsUsername: "app"}, image: "root", want: identity{uid: 1000, gid: 1001, groups: []uint32{1001, 10, 50000}, home: "/srv/app"}},
		{name: "request's group", security: &context{RunAsUser: id(1000), RunAsGroup: id(9), SupplementalGroups: []int64{9, 1234, 10}},
			want: identity{uid: 1000, gid: 9, groups: []uint32{9, 10, 1234, 50000}, home: "/srv/app"}},
		{name: "strict", security: &context{RunAsUser: id(1000), SupplementalGroups: []int64{1234}, SupplementalGroupsPolicy: 1},
			want: identity{uid: 1000, gid: 1001, groups: []uint32{1001, 1234}, home: "/srv/app"}},

		{name: "unknown name", image: "nosuch", field: userField},
		{name: "unknown name asked for", security: &context{RunAsUsername: "nosuch"}, field: "linux.security_context.run_as_username"},
		{name: "number as a name", security: &context{RunAsUsername: "1000"}, field: "linux.security_context.run_as_username"},
		{name: "unknown group", image: "app:nosuch", field: userField},
		{name: "overflow is no name (CVE-2026-46680)", image: "4294967296", field: userField},
		{name: "minus one", image: "-1", field: userField},
		{name: "plus one", image: "+1", field: userField},
		{name: "just beyond", image: "2147483648", field: userField},
		{name: "far beyond", image: strings.Repeat("9", 100), field: userField},
		{name: "group overflow", image: "0:4294967296", field: userField},
		{name: "id overflow in the file", image: "big", field: "image.passwd"},
		{name: "no id in the file", image: "broken", field: "image.passwd"},
		{name: "no group id in the file", image: "badgid", field: "image.passwd"},
		{name: "no group id in the file, by id", image: "77", field: "image.passwd"},
		{name: "bad group with the user in it", security: &context{}, image: "unlucky", field: "image.group"},
		{name: "no user", image: ":5", field: userField},
		{name: "no group", image: "app:", field: userField},
		{name: "three parts", image: "app:1:2", field: userField},
		{name: "newline", image: "app\nroot", field: userField},
		{name: "long", image: strings.Repeat("a", 300), field: userField},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := resolveUser(c.security, c.image, []byte(testPasswd+"unlucky:x:9:9::/:\n"), []byte(testGroup))
			if c.field != "" {
				wantField(t, err, c.field)
				return
			}
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

// A number whose line in passwd has it as a name is still a number (B48).
func TestANumberIsNeverAName(t *testing.T) {
	got, err := resolveUser(nil, "4242", []byte(testPasswd), nil)
	if err != nil || got.uid != 4242 {
		t.Errorf("got %+v, %v, want uid 4242", got, err)
	}
}

func TestImageUser(t *testing.T) {
	for _, c := range []struct {
		user string
		uid  int64 // -1 is none
		name string
		bad  bool
	}{
		{"", -1, "", false}, {"1002", 1002, "", false}, {"0", 0, "", false}, {"www-data", -1, "www-data", false},
		{"1003:1004", 1003, "", false}, {"www-data:1004", -1, "www-data", false},
		{"4294967296", -1, "", true}, {"-1", -1, "", true}, {"a:b:c", -1, "", true}, {":1", -1, "", true},
	} {
		uid, name, err := ImageUser(c.user)
		got := int64(-1)
		if uid != nil {
			got = *uid
		}
		if got != c.uid || name != c.name || (err != nil) != c.bad {
			t.Errorf("%q: got %d %q, %v, want %d %q, error %t", c.user, got, name, err, c.uid, c.name, c.bad)
		}
	}
}

// Whatever an image's files hold: no crash, ids in range, the primary group first, and root only for who is root.
func FuzzResolveUser(f *testing.F) {
	f.Add("app", testPasswd, testGroup)
	f.Add("1000:data", testPasswd, testGroup)
	f.Add("4294967296", "4294967296:x:0:0", "")
	f.Add("a", "a:x:+0:0\na:x:0x0:0", "a:x:1:a")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		id, err := resolveUser(nil, user, []byte(passwd), []byte(group))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		name, _, _ := strings.Cut(user, ":")
		if isNumber(name) && strings.Trim(name, "0") != "" && id.uid == 0 {
			t.Errorf("%q became root", user)
		}
		if len(id.groups) == 0 || id.groups[0] != id.gid || !goodID(int64(id.uid)) || !goodID(int64(id.gid)) {
			t.Errorf("%q: got %+v", user, id)
		}
		if hasControl(id.home) {
			t.Errorf("%q: home %q", user, id.home)
		}
	})
}
