package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// segmentLines reads a one-segment log's lines, each with its newline.
func segmentLines(t testing.TB, dir string) [][]byte {
	t.Helper()
	return bytes.SplitAfter(bytes.TrimSuffix(must(os.ReadFile(segmentPath(dir, 1))), []byte("\n")), []byte("\n"))
}

func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "audit")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// lay writes lines as the log's one segment.
func lay(t testing.TB, dir string, lines [][]byte) {
	t.Helper()
	if err := os.WriteFile(segmentPath(dir, 1), bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

func forged(line []byte) []byte {
	return bytes.Replace(line, []byte("issues_close"), []byte("issues_erase"), 1)
}

// Promise 9: every change to a single line is found, with its index, by the
// verifier and by whoever would go on writing to the log.
func TestEveryMutationOfALineIsFound(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 60)
	lines := segmentLines(t, cfg.Dir)
	lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
	n := len(lines)
	if n != 62 {
		t.Fatalf("%d lines", n)
	}
	insert := func(at int, line []byte) func() [][]byte {
		return func() [][]byte { return slices.Insert(slices.Clone(lines), at, line) }
	}
	swap := func(i, j int) func() [][]byte {
		return func() [][]byte {
			all := slices.Clone(lines)
			all[i], all[j] = all[j], all[i]
			return all
		}
	}
	set := func(i int, line []byte) func() [][]byte {
		return func() [][]byte {
			all := slices.Clone(lines)
			all[i] = line
			return all
		}
	}
	flip := func(i, at int, to byte) func() [][]byte {
		line := bytes.Clone(lines[i])
		line[at] = to
		return set(i, line)
	}
	type mutation struct {
		name  string
		index int64
		code  Code
		lines func() [][]byte
	}
	var all []mutation
	for i := range n {
		line, at := lines[i], int64(i)
		add := func(name string, index int64, code Code, lines func() [][]byte) {
			all = append(all, mutation{fmt.Sprintf("%s %d", name, i), index, code, lines})
		}
		// A byte of each kind: structure, a name, text, digits, hash, time, the newline.
		seen := make(map[string]bool)
		for _, find := range []string{`{`, `"code"`, `TG`, `"idx":`, `"prev":"sha256:`, `"time":"20`, `,"type"`, `"v":`, `}`} {
			if k := bytes.Index(line, []byte(find)); k >= 0 {
				for off, to := range map[int]byte{0: '\n', len(find) - 1: []byte{0, '"', 0xff}[i%3], len(find): line[min(k+len(find), len(line)-1)] ^ 1} {
					p := min(k+off, len(line)-1)
					if name := fmt.Sprint("byte ", p, " to ", to); line[p] != to && !seen[name] {
						seen[name] = true
						add(name+" of", at, "", flip(i, p, to))
					}
				}
			}
		}
		add("drop", at, "", func() [][]byte { return slices.Delete(slices.Clone(lines), i, i+1) })
		add("duplicate", at+1, "", insert(i+1, line))
		add("insert a copy far off before", at, "", insert(i, lines[(i+31)%n]))
		add("cut short", at, "", set(i, line[:len(line)/2]))
		add("empty", at, "", set(i, []byte("\n")))
		add("space in", at, "", set(i, bytes.Replace(line, []byte(":"), []byte(": "), 1)))
		add("cut the log at", at, Truncated, func() [][]byte { return lines[:i] })
		add("cut the log within", at, Truncated, func() [][]byte { return append(slices.Clone(lines[:i]), line[:len(line)-1]) })
		if i+1 < n {
			add("swap", at, Reordered, swap(i, i+1))
		}
		if i+7 < n {
			add("swap far", at, Reordered, swap(i, i+7))
		}
		if i > 0 && i+1 < n {
			add("forge", at, Changed, set(i, forged(line)))
			add("insert a forged", at, Inserted, insert(i, forged(line)))
			add("drop", at, Dropped, func() [][]byte { return slices.Delete(slices.Clone(lines), i, i+1) })
			add("duplicate", at+1, Duplicated, insert(i+1, line))
		}
	}
	found := func(dir string, m mutation, exact bool) {
		r, err := Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()})
		switch {
		case err != nil:
			t.Errorf("%s: %v", m.name, err)
		case r.Bad == nil && m.index < int64(n):
			t.Errorf("%s: found whole", m.name)
		case r.Bad == nil: // a line after all that the checkpoint covers
			t.Errorf("%s: found whole", m.name)
		case exact && (r.Bad.Index != m.index || m.code != "" && r.Bad.Code != m.code):
			t.Errorf("%s: %v, not %s at %d", m.name, r.Bad, m.code, m.index)
		}
	}
	dir, bare := copyDir(t, cfg.Dir), copyDir(t, cfg.Dir)
	if err := os.Remove(filepath.Join(bare, hashesFile)); err != nil {
		t.Fatal(err)
	}
	for k, m := range all {
		changed := m.lines()
		lay(t, dir, changed)
		found(dir, m, true)
		if k%5 == 0 { // without the stored hashes it is found too, if less exactly
			lay(t, bare, changed)
			found(bare, m, false)
		}
		if k%31 == 0 {
			again := cfg
			again.Dir = dir
			if l, err := Open(again); err == nil {
				t.Errorf("%s: the log was opened", m.name)
				l.Close()
				dir = copyDir(t, cfg.Dir)
			}
		}
	}
	t.Logf("%d mutations", len(all))
}

// Without the stored hashes the chain alone still names the line.
func TestTheChainAloneNamesTheLine(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 20)
	lines := segmentLines(t, cfg.Dir)
	lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
	dir := copyDir(t, cfg.Dir)
	for _, m := range []struct {
		name  string
		index int64
		code  Code
		lines [][]byte
	}{
		{"changed", 5, Changed, slices.Concat(lines[:5], [][]byte{forged(lines[5])}, lines[6:])},
		{"dropped", 5, Dropped, slices.Concat(lines[:5], lines[6:])},
		{"duplicated", 6, Duplicated, slices.Concat(lines[:6], lines[5:])},
		{"reordered", 5, Reordered, slices.Concat(lines[:5], [][]byte{lines[6], lines[5]}, lines[7:])},
		{"cut", 5, Truncated, lines[:5]},
		{"its index", 5, Changed, slices.Concat(lines[:5], [][]byte{bytes.Replace(lines[5], []byte(`"idx":5`), []byte(`"idx":9`), 1)}, lines[6:])},
	} {
		lay(t, dir, m.lines)
		for _, hashes := range [][]byte{nil, bytes.Repeat([]byte{7}, 1<<16)} { // none, and rubbish
			os.WriteFile(filepath.Join(dir, hashesFile), hashes, 0o600)
			r := must(Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()}))
			if r.Bad == nil || r.Bad.Index != m.index || r.Bad.Code != m.code {
				t.Errorf("%s: %v", m.name, r.Bad)
			}
		}
	}
}

// relay makes the lines again from at on, as a forger without the key would: a
// chain that is right in itself.
func relay(lines [][]byte, at int) [][]byte {
	all := slices.Clone(lines)
	for i := max(at, 1); i < len(all); i++ {
		var e Event
		if err := json.Unmarshal(all[i], &e); err != nil {
			panic(err)
		}
		e.Integrity.Prev = lineHash(all[i-1][:len(all[i-1])-1])
		all[i] = bytes.Clone(must(newEncoder().line(&e)))
	}
	return all
}

func TestACheckpointFindsAWholeNewChain(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 20)
	lines := segmentLines(t, cfg.Dir)
	lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
	lines[5] = forged(lines[5])
	forged := relay(lines, 6)
	dir := copyDir(t, cfg.Dir)
	lay(t, dir, forged)
	if r := must(Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad == nil || r.Bad.Index != 5 || r.Bad.Code != Changed {
		t.Errorf("with stored hashes: %v", r.Bad)
	}
	os.Remove(filepath.Join(dir, hashesFile))
	if r := must(Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad == nil || r.Bad.Index > 5 || r.Bad.Code != Rewritten {
		t.Errorf("without: %v", r.Bad)
	}
}

// resigned is a log of these lines, as somebody with the key would make it.
func resigned(t testing.TB, cfg Config, lines [][]byte) (dir string) {
	t.Helper()
	dir = copyDir(t, cfg.Dir)
	lay(t, dir, lines)
	var tr tree
	var sums []byte
	signed := must(cfg.Key.sign(Checkpoint{origin, 0, tr.root()}))
	for _, line := range lines {
		for _, h := range tr.add(tlog.RecordHash(line[:len(line)-1])) {
			sums = append(sums, h[:]...)
		}
	}
	last := must(cfg.Key.sign(Checkpoint{origin, tr.size, tr.root()}))
	os.WriteFile(filepath.Join(dir, historyFile), append(signed, last...), 0o600)
	os.WriteFile(filepath.Join(dir, checkpointFile), last, 0o600)
	os.WriteFile(filepath.Join(dir, hashesFile), sums, 0o600)
	return dir
}

// A writer that signs what it should not have written is found by the rules
// that every line is under, whatever it signed.
func TestWhatIsSignedMustStillBeALog(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 10)
	lines := segmentLines(t, cfg.Dir)
	lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
	edit := func(change func(e *Event)) []byte {
		var e Event
		if err := json.Unmarshal(lines[5], &e); err != nil {
			t.Fatal(err)
		}
		change(&e)
		return bytes.Clone(must(newEncoder().line(&e)))
	}
	for _, row := range []struct {
		name string
		code Code
		line []byte
	}{
		{"earlier", TimeRunsBack, edit(func(e *Event) { e.Time = "2020-01-01T00:00:00.000000Z" })},
		{"no time", Malformed, edit(func(e *Event) { e.Time = "yesterday, at about noon...." })},
		{"another log's", WrongLog, edit(func(e *Event) { e.Integrity.Log = "other.example/log" })},
		{"another version", Malformed, edit(func(e *Event) { e.V = 2 })},
		{"spaced", NotCanonical, bytes.Replace(lines[5], []byte(`,"id"`), []byte(`, "id"`), 1)},
		{"out of order", NotCanonical, append([]byte(`{"z":1,`), lines[5][1:]...)},
		{"with a name twice", Malformed, append([]byte(`{"call":1,`), lines[5][1:]...)},
		{"a bare object", Malformed, []byte("{}\n")},
		{"without prev", Changed, edit(func(e *Event) { e.Integrity.Prev = "" })},
	} {
		all := slices.Clone(lines)
		all[5] = row.line
		for i := 6; i < len(all); i++ { // relay, but keeping row.line as it is
			var e Event
			if err := json.Unmarshal(all[i], &e); err != nil {
				t.Fatal(err)
			}
			e.Integrity.Prev = lineHash(all[i-1][:len(all[i-1])-1])
			all[i] = bytes.Clone(must(newEncoder().line(&e)))
		}
		dir := resigned(t, cfg, all)
		if r := must(Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad == nil || r.Bad.Index != 5 || r.Bad.Code != row.code {
			t.Errorf("%s: %v", row.name, r.Bad)
		}
	}
}

// Whoever stole the key can sign a new past, but not take back the checkpoint
// that somebody else holds.
func TestACheckpointHeldElsewhereFindsANewPast(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	for i := range 10 {
		if err := l.Append(t.Context(), call(fmt.Sprint(i), CallAllowed)); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	held := must(l.Checkpoint())
	opts := VerifyOptions{VKey: cfg.Key.VKey(), Checkpoint: held}
	if r := must(Verify(cfg.Dir, opts)); r.Bad != nil {
		t.Fatal(r.Bad)
	}
	lines := segmentLines(t, cfg.Dir)
	lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
	resign := func(lines [][]byte) string {
		dir := resigned(t, cfg, lines)
		if r := must(Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad != nil {
			t.Fatalf("the forgery is poor: %v", r.Bad)
		}
		return dir
	}
	if r := must(Verify(resign(lines[:6]), opts)); r.Bad == nil || r.Bad.Index != 6 || r.Bad.Code != Truncated {
		t.Errorf("cut: %v", r.Bad)
	}
	lines[4] = forged(lines[4])
	if r := must(Verify(resign(relay(lines, 5)), opts)); r.Bad == nil || r.Bad.Index > 4 || r.Bad.Code != Rewritten {
		t.Errorf("rewritten: %v", r.Bad)
	}
	other := must(NewKey(filepath.Join(t.TempDir(), "k"), origin))
	if _, err := Verify(cfg.Dir, VerifyOptions{VKey: cfg.Key.VKey(), Checkpoint: must(other.sign(Checkpoint{origin, 1, tlog.Hash{}}))}); err == nil {
		t.Error("a held checkpoint of another key was taken")
	}
}

func TestEveryChangeToACheckpointIsFound(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 20)
	for _, name := range []string{checkpointFile, historyFile} {
		good := must(os.ReadFile(filepath.Join(cfg.Dir, name)))
		dir := copyDir(t, cfg.Dir)
		check := func(what string, data []byte) {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
			if r := must(Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad == nil && len(r.Notes) == 0 {
				t.Errorf("%s: %s: found whole", name, what)
			}
		}
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			check(fmt.Sprint("byte ", i), bad)
		}
		check("doubled", append(bytes.Clone(good), good...))
		os.Remove(filepath.Join(dir, name))
		if r := must(Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad == nil {
			t.Errorf("%s: removed: found whole", name)
		}
	}
	other := must(NewKey(filepath.Join(t.TempDir(), "k"), origin))
	if r := must(Verify(cfg.Dir, VerifyOptions{VKey: other.VKey()})); r.Bad == nil || r.Bad.Code != BadCheckpoint {
		t.Errorf("another key: %v", r.Bad)
	}
}

func TestTheKeyInTheDirectoryIsNamedAsSuch(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 1)
	if r := must(Verify(cfg.Dir, VerifyOptions{})); r.Bad != nil || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "directory itself") {
		t.Errorf("%+v", r)
	}
}

func TestVerifyAnswersRubbish(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 3)
	opts := VerifyOptions{VKey: cfg.Key.VKey()}
	if _, err := Verify(filepath.Join(cfg.Dir, "nowhere"), opts); err == nil {
		t.Error("no directory: no error")
	}
	if _, err := Verify(cfg.Dir, VerifyOptions{VKey: "rubbish"}); err == nil {
		t.Error("no key: no error")
	}
	if r := must(Verify(t.TempDir(), opts)); r.Bad == nil {
		t.Error("an empty directory is whole")
	}
	for name, data := range map[string]string{
		"no end": strings.Repeat("x", 1<<20), "zeros": strings.Repeat("\x00", 1<<20), "newlines": strings.Repeat("\n", 1000), "deep": strings.Repeat("[", 10000) + "\n",
	} {
		dir := copyDir(t, cfg.Dir)
		os.WriteFile(segmentPath(dir, 1), []byte(data), 0o600)
		if r := must(Verify(dir, opts)); r.Bad == nil || r.Bad.Index != 0 {
			t.Errorf("%s: %v", name, r.Bad)
		}
	}
}

func FuzzVerify(f *testing.F) {
	cfg := config(f)
	closed(f, cfg, 5)
	good := make(map[string][]byte)
	for _, name := range []string{"000001.jsonl", checkpointFile, historyFile, hashesFile} {
		good[name] = must(os.ReadFile(filepath.Join(cfg.Dir, name)))
		f.Add(name, good[name])
	}
	dir := copyDir(f, cfg.Dir)
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if good[name] == nil {
			return
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.WriteFile(path, good[name], 0o600)
		r, err := Verify(dir, VerifyOptions{VKey: cfg.Key.VKey()})
		if err != nil {
			t.Fatal(err)
		}
		if r.Bad == nil && name == "000001.jsonl" && !bytes.HasPrefix(data, good[name]) {
			t.Fatalf("another log found whole: %q", data)
		}
	})
}

// What we sign and prove is checked here without a line of our own code or of
// x/mod: the note by hand, the proof by transparency-dev/merkle.
func TestOthersCanCheckACheckpointAndAProof(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 45)
	lines := segmentLines(t, cfg.Dir)
	lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
	signed := string(must(os.ReadFile(filepath.Join(cfg.Dir, checkpointFile))))
	text, sigs, _ := strings.Cut(signed, "\n\n")
	parts := strings.Split(text, "\n")
	if len(parts) != 3 || parts[0] != origin || parts[1] != fmt.Sprint(len(lines)) {
		t.Fatalf("checkpoint: %q", parts)
	}
	root := must(base64.StdEncoding.DecodeString(parts[2]))
	vkey := strings.SplitN(cfg.Key.VKey(), "+", 3)
	pub := must(base64.StdEncoding.DecodeString(vkey[2]))
	sig, ok := strings.CutPrefix(sigs, "— "+origin+" ")
	raw := must(base64.StdEncoding.DecodeString(strings.TrimSuffix(sig, "\n")))
	id := sha256.Sum256(append([]byte(origin+"\n"), pub...))
	if !ok || pub[0] != 1 || hex.EncodeToString(id[:4]) != vkey[1] || !bytes.Equal(raw[:4], id[:4]) ||
		!ed25519.Verify(pub[1:], []byte(text+"\n"), raw[4:]) {
		t.Fatal("the signature does not verify")
	}
	for i, line := range lines {
		p := string(must(Prove(cfg.Dir, int64(i))))
		top, rest, _ := strings.Cut(p, "\n\n")
		head := strings.Split(top, "\n")
		if head[0] != "c2sp.org/tlog-proof@v1" || head[1] != fmt.Sprint("index ", i) || rest != signed {
			t.Fatalf("proof: %q", p)
		}
		var path [][]byte
		for _, h := range head[2:] {
			path = append(path, must(base64.StdEncoding.DecodeString(h)))
		}
		leaf := rfc6962.DefaultHasher.HashLeaf(bytes.TrimSuffix(line, []byte("\n")))
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(i), uint64(len(lines)), leaf, path, root); err != nil {
			t.Errorf("event %d: %v", i, err)
		}
		leaf[0] ^= 1
		if proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(i), uint64(len(lines)), leaf, path, root) == nil {
			t.Errorf("event %d: a proof of anything", i)
		}
	}
	if _, err := Prove(cfg.Dir, int64(len(lines))); err == nil {
		t.Error("proved an event that is not there")
	}
}

func TestTheStoredHashesAreMadeAgainFromTheLines(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 33)
	path := filepath.Join(cfg.Dir, hashesFile)
	for _, bad := range [][]byte{nil, []byte("rubbish"), bytes.Repeat([]byte{7}, 100_000)} {
		os.WriteFile(path, bad, 0o600)
		if _, err := Prove(cfg.Dir, 3); err == nil {
			t.Error("proved by rubbish")
		}
		open(t, cfg).Close()
		if _, err := Prove(cfg.Dir, 3); err != nil {
			t.Error(err)
		}
		if info := must(os.Stat(path)); info.Size() != tlog.StoredHashCount(whole(t, cfg).Size)*tlog.HashSize {
			t.Errorf("%d bytes of hashes", info.Size())
		}
	}
}

func TestKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	k := must(NewKey(file, origin))
	again := must(NewKey(file, origin))
	if k.VKey() != again.VKey() {
		t.Error("a new key on the second call")
	}
	if info := must(os.Stat(file)); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if s := fmt.Sprintf("%v %+v %s", k, k, k); strings.Contains(s, "PRIVATE") || !strings.Contains(s, k.VKey()) {
		t.Errorf("it prints %s", s)
	}
	if _, err := NewKey(file, "other.example/log"); err == nil {
		t.Error("a key of another origin was taken")
	}
	os.Chmod(file, 0o644)
	if _, err := NewKey(file, origin); err == nil {
		t.Error("a key that anyone can read was taken")
	}
	os.Chmod(file, 0o600)
	os.WriteFile(file, []byte("PRIVATE+KEY+rubbish"), 0o600)
	if _, err := NewKey(file, origin); err == nil || strings.Contains(err.Error(), "rubbish") {
		t.Errorf("rubbish: %v", err)
	}
	if _, err := NewKey(filepath.Join(t.TempDir(), "key"), "no spaces please"); err == nil {
		t.Error("a bad origin was taken")
	}
	if _, err := OpenCheckpoint(must(k.sign(Checkpoint{"other.example/log", 0, tlog.Hash{}})), k.VKey()); err == nil {
		t.Error("a checkpoint of another log was taken")
	}
	_, vkey, _ := note.GenerateKey(rand.Reader, origin)
	if _, err := OpenCheckpoint(must(k.sign(Checkpoint{origin, 0, tlog.Hash{}})), vkey); err == nil {
		t.Error("signed by another key")
	}
}
