package seccompprofiles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxDepth and maxKeys are far above what the format has, 6 levels and 9 keys;
// they bound recursion and the search for repeated keys.
const maxDepth, maxKeys = 16, 64

// Error says what is wrong with a profile and where. Line and Column start at
// 1 and count characters; Path is the place in the JSON, such as
// syscalls[3].args[0].op.
type Error struct {
	Path   string
	Line   int
	Column int
	Reason string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("seccomp profile: line %d, column %d: %s", e.Line, e.Column, e.Reason)
	}
	return fmt.Sprintf("seccomp profile: line %d, column %d: %s: %s", e.Line, e.Column, e.Path, e.Reason)
}

type kind int

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindArray
	kindObject
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "an array", "an object"}[k]
}

// node is one JSON value with its place. encoding/json keeps no places and
// accepts unknown keys, repeated keys and keys in the wrong case, each of which
// would let a profile mean less than its author thinks.
type node struct {
	kind   kind
	offset int    // of the value's first byte
	text   string // strings and numbers
	items  []*node
	keys   []key // objects; keys[i] belongs to items[i]
}

type key struct {
	name   string
	offset int
}

type treeReader struct {
	data []byte
	dec  *json.Decoder
}

func readTree(data []byte) (*node, error) {
	if err := checkSyntax(data); err != nil {
		return nil, err
	}
	r := &treeReader{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	r.dec.UseNumber()
	return r.value("", 0)
}

// checkSyntax comes first because the decoder that gives us places loses them
// in what isn't JSON.
func checkSyntax(data []byte) error {
	var whole json.RawMessage
	err := json.Unmarshal(data, &whole)
	if err == nil {
		return nil
	}
	at := len(data)
	// The offset counts the offending byte, where there is one.
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && !strings.HasPrefix(syntax.Error(), "unexpected end") {
		at = int(syntax.Offset) - 1
	}
	return errorAt(data, at, "", "not JSON: "+err.Error())
}

// next is the offset at which the next token begins.
func (r *treeReader) next() int {
	at := int(r.dec.InputOffset())
	for at < len(r.data) && bytes.IndexByte([]byte(" \t\r\n,:"), r.data[at]) >= 0 {
		at++
	}
	return at
}

func (r *treeReader) token(path string) (json.Token, int, error) {
	at := r.next()
	tok, err := r.dec.Token()
	if err != nil {
		return nil, at, errorAt(r.data, at, path, "not JSON: "+err.Error())
	}
	return tok, at, nil
}

func (r *treeReader) value(path string, depth int) (*node, error) {
	tok, at, err := r.token(path)
	if err != nil {
		return nil, err
	}
	n := &node{offset: at}
	switch tok := tok.(type) {
	case nil:
		n.kind = kindNull
	case bool:
		n.kind = kindBool
	case json.Number:
		n.kind, n.text = kindNumber, tok.String()
	case string:
		n.kind, n.text = kindString, tok
	case json.Delim:
		if depth == maxDepth {
			return nil, errorAt(r.data, at, path, "nested too deeply")
		}
		if tok == '[' {
			return r.array(n, path, depth)
		}
		return r.object(n, path, depth)
	}
	return n, nil
}

func (r *treeReader) array(n *node, path string, depth int) (*node, error) {
	n.kind = kindArray
	for r.dec.More() {
		item, err := r.value(fmt.Sprintf("%s[%d]", path, len(n.items)), depth+1)
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, item)
	}
	_, _, err := r.token(path)
	return n, err
}

func (r *treeReader) object(n *node, path string, depth int) (*node, error) {
	n.kind = kindObject
	for r.dec.More() {
		tok, at, err := r.token(path)
		if err != nil {
			return nil, err
		}
		name, _ := tok.(string) // the decoder admits nothing else here
		for _, k := range n.keys {
			if k.name == name {
				return nil, errorAt(r.data, at, join(path, name), "key given twice")
			}
		}
		if len(n.keys) == maxKeys {
			return nil, errorAt(r.data, at, path, "too many keys")
		}
		item, err := r.value(join(path, name), depth+1)
		if err != nil {
			return nil, err
		}
		n.keys = append(n.keys, key{name: name, offset: at})
		n.items = append(n.items, item)
	}
	_, _, err := r.token(path)
	return n, err
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func errorAt(data []byte, offset int, path, reason string) *Error {
	before := data[:min(offset, len(data))]
	lineStart := bytes.LastIndexByte(before, '\n') + 1
	return &Error{
		Path:   path,
		Line:   bytes.Count(before, []byte("\n")) + 1,
		Column: utf8.RuneCount(before[lineStart:]) + 1,
		Reason: reason,
	}
}
