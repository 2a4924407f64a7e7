//! Holds the rules of the house (CONTRIBUTING.md, "House rules"): every test walks the sources and names all offenders
//! at once, with the file, the line and what to do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::Visit;

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;
const TIERS: [&str; 3] = ["edge-agent", "aggregator", "collector"];
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["util", "utils", "helper", "helpers", "misc", "common", "shared"];
const TEXT_ENDINGS: [&str; 12] =
    ["rs", "toml", "md", "proto", "run", "yml", "yaml", "json", "xml", "sh", "properties", "txt"];

/// A file of the project.
struct File {
    /// From the top of the workspace, with `/`.
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Every text file of the project; version control and what it ignores (build products, a demo's files) are left out.
fn files() -> Vec<File> {
    let root = root();
    let ignored = fs::read_to_string(root.join(".gitignore")).expect("the project says what it ignores");
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("the sources can be listed") {
            let path = entry.expect("the sources can be listed").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != ".git" && !ignored.contains(&name.as_str()) {
                    directories.push(path);
                }
            } else if path.extension().map_or(name == "run", |ending| TEXT_ENDINGS.iter().any(|known| ending == *known))
                && let Ok(text) = fs::read_to_string(&path)
            {
                let relative = path.strip_prefix(&root).expect("found below it");
                found.push(File { path: relative.to_string_lossy().into_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn sources() -> Vec<File> {
    let sources: Vec<File> = files().into_iter().filter(|file| file.path.ends_with(".rs")).collect();
    assert!(sources.len() > 20, "the walk over the sources finds only {} files", sources.len());
    sources
}

impl File {
    /// A file that holds nothing but tests.
    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs") || self.path.contains("/benches/")
    }

    /// The lines in front of the test module that ends a file, numbered from 1.
    fn product_lines(&self) -> Vec<(usize, &str)> {
        if self.is_test() {
            return Vec::new();
        }
        let lines: Vec<(usize, &str)> = (1..).zip(self.text.lines()).collect();
        let tests_begin = lines
            .windows(2)
            .position(|pair| pair[0].1 == "#[cfg(test)]" && pair[1].1.starts_with("mod ") && pair[1].1.ends_with('{'));
        lines[..tests_begin.unwrap_or(lines.len())].to_vec()
    }

    /// Product lines, cut where a comment begins.
    fn code_lines(&self) -> Vec<(usize, &str)> {
        let without_comment = |(number, line): (usize, &'_ str)| (number, line.find("//").unwrap_or(line.len()));
        let lines = self.product_lines();
        lines.iter().map(|&at| (at.0, &at.1[..without_comment(at).1])).collect()
    }

    fn is_under(&self, place: &str) -> bool {
        self.path == format!("{place}.rs") || self.path.starts_with(&format!("{place}/"))
    }
}

/// Fails with every offender.
fn none(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}\n{} offenders:\n  {}", offenders.len(), offenders.join("\n  "));
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> =
        sources().iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path.clone()).collect();
    none("A source file begins with a `//!` line that says what it is for.", &silent);
}

#[test]
fn files_are_short() {
    let long: Vec<String> = sources()
        .iter()
        .map(|file| (file.product_lines().len(), &file.path))
        .filter(|(lines, _)| *lines > MAX_FILE_LINES)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    none(&format!("A file has at most {MAX_FILE_LINES} lines before its tests; split it by what it is about."), &long);
}

#[derive(Default)]
struct Functions {
    /// Name, first line, number of lines.
    found: Vec<(String, usize, usize)>,
}

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (first, last) = (signature.span().start().line, block.span().end().line);
        self.found.push((signature.ident.to_string(), first, last - first + 1));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        syn::visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        syn::visit::visit_trait_item_fn(self, function);
    }
}

#[test]
fn functions_fit_a_screen() {
    let mut long = Vec::new();
    for file in sources() {
        let parsed = match syn::parse_file(&file.text) {
            Ok(parsed) => parsed,
            Err(error) => {
                long.push(format!("{}: cannot be parsed: {error}", file.path));
                continue;
            }
        };
        let mut functions = Functions::default();
        functions.visit_file(&parsed);
        let over = functions.found.into_iter().filter(|(.., lines)| *lines > MAX_FUNCTION_LINES);
        long.extend(over.map(|(name, line, lines)| format!("{}:{line} {name}: {lines} lines", file.path)));
    }
    none(&format!("A function has at most {MAX_FUNCTION_LINES} lines; give its parts names."), &long);
}

#[test]
fn modules_have_names_that_mean_something() {
    let mut empty = Vec::new();
    for file in sources() {
        let path = file.path.strip_prefix("common/").unwrap_or(&file.path);
        let parts = path.split('/').map(|part| part.trim_end_matches(".rs"));
        empty.extend(parts.filter(|part| EMPTY_NAMES.contains(part)).map(|part| format!("{}: {part}", file.path)));
        for (number, line) in (1..).zip(file.text.lines()) {
            let declared = line.trim().trim_start_matches("pub ").strip_prefix("mod ");
            let name = declared.and_then(|rest| rest.split([';', ' ']).next()).unwrap_or_default();
            if EMPTY_NAMES.contains(&name) {
                empty.push(format!("{}:{number} mod {name}", file.path));
            }
        }
    }
    none("Name a module after the thing inside.", &empty);
}

#[test]
fn each_store_is_behind_its_one_module() {
    let this = "loadtest/tests/house_rules";
    let homes: [(&str, &[&str]); 2] = [
        ("sled", &["aggregator/src/channel", this]),
        ("hdfs_native", &["collector/src/store", "loadtest/src", "loadtest/tests"]),
    ];
    let mut strays = Vec::new();
    for file in sources() {
        for (library, places) in homes {
            if places.iter().any(|place| file.is_under(place)) {
                continue;
            }
            let named = file.code_lines().into_iter().filter(|(_, line)| has_word(line, library));
            strays.extend(named.map(|(number, _)| format!("{}:{number} names {library}", file.path)));
        }
    }
    none("sled is named only in the aggregator's channel, hdfs_native only in the collector's store.", &strays);
}

/// Name and manifest of each crate.
fn manifests() -> BTreeMap<String, toml::Table> {
    let crates = ["proto", "common", "edge-agent", "aggregator", "collector", "loadtest"];
    let read = |name: &str| {
        let text = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("every crate has a manifest");
        (name.to_owned(), text.parse().expect("a manifest is TOML"))
    };
    crates.into_iter().map(read).collect()
}

/// Name and value of everything a crate depends on.
fn dependencies(manifest: &toml::Table) -> Vec<(&str, &toml::Value)> {
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let tables = tables.iter().filter_map(|table| manifest.get(*table)?.as_table());
    tables.flat_map(|table| table.iter().map(|(name, value)| (name.as_str(), value))).collect()
}

#[test]
fn arrows_only_go_down() {
    // What each crate may take from the workspace.
    let allowed = |name: &str| -> &[&str] {
        match name {
            "proto" => &[],
            "common" => &["proto"],
            "loadtest" => &["proto", "common", "edge-agent", "aggregator", "collector"],
            _ => &["proto", "common"],
        }
    };
    let manifests = manifests();
    let mut wrong = Vec::new();
    for (name, manifest) in &manifests {
        for (dependency, value) in dependencies(manifest) {
            let upward = manifests.contains_key(dependency) && !allowed(name).contains(&dependency);
            let astray = match dependency {
                "sled" => name != "aggregator",
                "hdfs-native" => name != "collector" && name != "loadtest",
                _ => false,
            };
            if upward || astray {
                wrong.push(format!("{name} depends on {dependency}"));
            }
            if value.is_str() || value.get("version").is_some() {
                wrong.push(format!("{name} gives {dependency} a version of its own"));
            }
        }
    }
    none("proto <- common <- tiers <- loadtest; versions stand in the workspace's manifest.", &wrong);
}

#[test]
fn the_shared_crate_knows_no_tier() {
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|file| file.path.starts_with("common/src/")) {
        for (number, line) in file.code_lines() {
            let tier = TIERS.iter().find(|tier| has_word(line, tier) || has_word(line, &tier.replace('-', "_")));
            wrong.extend(tier.map(|tier| format!("{}:{number} names {tier}", file.path)));
        }
    }
    none("What belongs to one tier lies in that tier.", &wrong);
}

#[test]
fn nothing_is_left_for_later() {
    // Put together, so that this file is not its own offender.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["HA", "CK"]].map(|parts| parts.concat());
    let calls = [["todo", "!("], ["unimplemented", "!("], ["dbg", "!("]].map(|parts| parts.concat());
    let mut left = Vec::new();
    for file in files() {
        for (number, line) in (1..).zip(file.text.lines()) {
            let marked = marks.iter().any(|mark| has_word(line, mark));
            if marked || (file.path.ends_with(".rs") && calls.iter().any(|call| line.contains(call.as_str()))) {
                left.push(format!("{}:{number} {}", file.path, line.trim()));
            }
        }
    }
    none("Finish it, or leave it out.", &left);
}

#[test]
fn no_code_is_commented_out() {
    let mut dead = Vec::new();
    for file in sources() {
        for (number, line) in (1..).zip(file.text.lines()) {
            let comment = line.trim_start().strip_prefix("// ").unwrap_or_default();
            if comment.ends_with(';') || comment.ends_with(" {") || comment == "}" || comment.starts_with("#[") {
                dead.push(format!("{}:{number} {}", file.path, line.trim()));
            }
        }
    }
    none("Version control remembers; delete it (or end the sentence with a full stop).", &dead);
}

#[test]
fn the_project_runs_on_any_machine() {
    let machine_paths = ["work", "tmp", "root"].map(|top| format!("/{top}/"));
    let hosts = [["artif", "actory"], ["crates", ".io"], ["maven", ".org"], ["pypi", ".org"], ["docker", ".io"]]
        .map(|parts| parts.concat());
    let is_longer = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || "._-}*".contains(c));
    let mut bound = Vec::new();
    for file in files() {
        for (number, line) in (1..).zip(file.text.lines()) {
            let absolute = machine_paths
                .iter()
                .any(|path| line.match_indices(path.as_str()).any(|(at, _)| !is_longer(&line[..at])));
            if absolute || hosts.iter().any(|host| line.contains(host.as_str())) {
                bound.push(format!("{}:{number} {}", file.path, line.trim()));
            }
        }
    }
    none("No path of one machine, no host of a registry: they differ from place to place.", &bound);
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for file in files().iter().filter(|file| file.path.ends_with(".md")) {
        let whole = root().join(&file.path);
        let around = whole.parent().expect("a file lies in a directory");
        for (number, line) in (1..).zip(file.text.lines()) {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = target.split('#').next().unwrap_or_default();
                if !path.is_empty() && !target.contains("://") && !around.join(path).exists() {
                    broken.push(format!("{}:{number} {target}", file.path));
                }
            }
        }
    }
    none("A link in a document names a file that exists.", &broken);
}

#[test]
fn the_rules_see_what_they_forbid() {
    let file = File {
        path: "collector/src/x.rs".to_owned(),
        text: "//! x\nuse sled::Db; // sled::Tree\n#[cfg(test)]\nmod tests {\n    use sled::Db;\n}\n".to_owned(),
    };
    assert_eq!(file.product_lines().len(), 2);
    assert_eq!(file.code_lines(), [(1, ""), (2, "use sled::Db; ")]);
    assert!(has_word("use sled::Db", "sled") && !has_word("tobesled::x", "sled") && !has_word("a_sled", "sled"));
    assert!(file.is_under("collector/src/x") && file.is_under("collector/src") && !file.is_under("collector/src/y"));
    let mut functions = Functions::default();
    functions.visit_file(&syn::parse_file("fn a() {\n}\nimpl B { fn c() { fn d() {\n\n} } }").expect("valid"));
    let lines: Vec<usize> = functions.found.iter().map(|(.., lines)| *lines).collect();
    assert_eq!(lines, [2, 3, 3]);
}
