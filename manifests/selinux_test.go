package manifests_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// form is an S-expression of the policy language CIL: a word, or a list of forms.
type form struct {
	word string
	list []form
}

func (f form) String() string {
	if f.list == nil {
		return f.word
	}
	var words []string
	for _, item := range f.list {
		words = append(words, item.String())
	}
	return "(" + strings.Join(words, " ") + ")"
}

// words are all words in a form.
func (f form) words() []string {
	if f.list == nil {
		return []string{f.word}
	}
	var words []string
	for _, item := range f.list {
		words = append(words, item.words()...)
	}
	return words
}

// parseCIL reads forms up to the end or a closing parenthesis; it gives the rest of the text.
func parseCIL(text string) (forms []form, rest string, err error) {
	forms = []form{}
	for {
		text = strings.TrimLeft(text, " \t\n")
		switch {
		case text == "" || text[0] == ')':
			return forms, text, nil
		case text[0] == ';':
			_, text, _ = strings.Cut(text, "\n")
		case text[0] == '(':
			list, after, err := parseCIL(text[1:])
			if err != nil {
				return nil, "", err
			}
			if after == "" {
				return nil, "", fmt.Errorf("the parenthesis of %v is not closed", form{list: list})
			}
			forms, text = append(forms, form{list: list}), after[1:]
		case text[0] == '"':
			end := strings.IndexByte(text[1:], '"')
			if end < 0 {
				return nil, "", fmt.Errorf("the quote of %.40s is not closed", text)
			}
			forms, text = append(forms, form{word: text[:end+2]}), text[end+2:]
		default:
			end := strings.IndexAny(text, " \t\n();")
			if end < 0 {
				end = len(text)
			}
			forms, text = append(forms, form{word: text[:end]}), text[end:]
		}
	}
}

// rules are the statements of the module, those in macros, optional blocks and under booleans included.
func rules(t *testing.T) []form {
	t.Helper()
	forms, rest, err := parseCIL(string(read(t, "selinux/podwright.cil")))
	if err != nil || rest != "" {
		t.Fatalf("podwright.cil: %v, left over: %.60q", err, rest)
	}
	var all []form
	var walk func([]form)
	walk = func(forms []form) {
		for _, f := range forms {
			if len(f.list) == 0 {
				continue
			}
			switch f.list[0].word {
			case "macro":
				walk(f.list[3:])
			case "optional":
				walk(f.list[2:])
			case "booleanif":
				for _, branch := range f.list[2:] {
					walk(branch.list[1:])
				}
			default:
				all = append(all, f)
			}
		}
	}
	walk(forms)
	if len(all) < 100 {
		t.Fatalf("got %d statements, want the whole module", len(all))
	}
	return all
}

// with lists the statements of a kind that have the word, as text.
func with(all []form, kind, word string) []string {
	var found []string
	for _, f := range all {
		if f.list[0].word == kind && slices.Contains(f.words(), word) {
			found = append(found, f.String())
		}
	}
	return found
}

// TestPolicyConfinesPodwright: the module makes nothing permissive, and gives its domain no attribute but those listed
// here, which none of the policy's unconfined ones and none of its engines' are.
func TestPolicyConfinesPodwright(t *testing.T) {
	harmless := []string{"domain", "daemon", "init_domain_type", "can_change_object_identity", "process_user_target", "dbusd_system_bus_client"}
	kinds := map[string]bool{}
	for _, f := range rules(t) {
		kind := f.list[0].word
		kinds[kind] = true
		if kind == "typeattributeset" && slices.Contains(f.words(), "podwright_t") && !slices.Contains(harmless, f.list[1].word) {
			t.Errorf("%v: want podwright_t in none but %v", f, harmless)
		}
		for _, word := range f.words() {
			if strings.Contains(word, "unconfined") && word != "unconfined_t" || word == "all" || word == "dyntransition" || word == "setcurrent" || word == "mac_override" {
				t.Errorf("%v: want no %s", f, word)
			}
		}
	}
	known := []string{"allow", "boolean", "call", "classpermission", "classpermissionset", "filecon", "roletype", "type", "typeattribute", "typeattributeset", "typetransition"}
	for kind := range kinds {
		if !slices.Contains(known, kind) {
			t.Errorf("statement %s: want none but %v (typepermissive least of all)", kind, known)
		}
	}
}

// TestPolicyEntersContainersByLabelOnly: every way from one domain into another is listed here. None leads into a
// container's without the exec label, and no file of a container's can be executed within podwright's domain.
func TestPolicyEntersContainersByLabelOnly(t *testing.T) {
	all := rules(t)
	same := func(what string, got []string, want ...string) {
		t.Helper()
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
	}
	same("transitions of their own accord", with(all, "typetransition", "process"),
		"(typetransition init_t podwright_exec_t process podwright_t)",
		"(typetransition initrc_t podwright_exec_t process podwright_t)",
		"(typetransition podwright_t iptables_exec_t process iptables_t)")
	same("transitions allowed", with(all, "allow", "transition"),
		"(allow init_t podwright_t (process (transition)))",
		"(allow initrc_t podwright_t (process (transition)))",
		"(allow sysadm_t podwright_t (process (transition)))",
		"(allow unconfined_t podwright_t (process (transition)))",
		"(allow podwright_t podwright_container (process (transition noatsecure rlimitinh siginh)))",
		"(allow podwright_t iptables_t (process (transition sigkill signal)))")
	same("domains of containers", with(all, "typeattributeset", "podwright_container"), "(typeattributeset podwright_container (container_system_domain))")
	same("entry points", with(all, "allow", "entrypoint"), "(allow podwright_t podwright_exec_t (file (entrypoint getattr open map read execute ioctl lock)))")
	var within []string
	for _, f := range all {
		if f.list[0].word == "allow" && f.list[1].word == "podwright_t" && slices.Contains(f.words(), "execute_no_trans") {
			within = append(within, f.list[2].word)
		}
	}
	// The last two are the node's, and executed where plugins may be scripts.
	same("types executed within the domain", within, "podwright_exec_t", "podwright_tmpfs_t", "container_plugin_t", "ifconfig_exec_t", "shell_exec_t", "bin_t")
	same("booleans", append(with(all, "boolean", "true"), with(all, "boolean", "false")...), "(boolean podwright_containers_capabilities true)", "(boolean podwright_containers_trace false)",
		"(boolean podwright_plugin_scripts false)")
	for _, f := range all {
		if f.list[0].word == "classpermissionset" && (slices.Contains(f.words(), "execute_no_trans") || slices.Contains(f.words(), "transition")) {
			t.Errorf("%v: want these permissions in rules only, where this test sees them", f)
		}
	}
}
