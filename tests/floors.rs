//! Compares the imports between the library's floors with the table in ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use syn::{
    UseTree,
    visit::{self, Visit},
};

/// The floors, from the lowest to the highest.
const FLOORS: [&str; 8] = [
    "hal",
    "transport",
    "fuse",
    "error",
    "session",
    "fs",
    "boot",
    "loader",
];

/// The modules of this crate whose names are in a file.
#[derive(Default)]
struct Named(BTreeSet<String>);

impl Named {
    /// Adds the first name after `crate` of each path.
    fn add(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => drop(self.0.insert(path.ident.to_string())),
            UseTree::Name(name) => drop(self.0.insert(name.ident.to_string())),
            UseTree::Rename(rename) => drop(self.0.insert(rename.ident.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add(tree)),
            UseTree::Glob(_) => drop(self.0.insert("*".into())),
        }
    }
}

impl Visit<'_> for Named {
    fn visit_use_path(&mut self, path: &syn::UsePath) {
        if path.ident == "crate" {
            self.add(&path.tree);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|first| first.ident == "crate")
            && let Some(module) = segments.next()
        {
            self.0.insert(module.ident.to_string());
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        if item.ident != "tests" && item.ident != "testing" {
            visit::visit_item_mod(self, item);
        }
    }
}

fn files_below(path: &Path, out: &mut Vec<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files_below(&entry.unwrap().path(), out);
        }
    } else if path.file_name().unwrap() != "tests.rs" {
        out.push(fs::read_to_string(path).unwrap());
    }
}

/// The module of each item that the crate re-exports at its root.
fn homes(src: &Path) -> BTreeMap<String, String> {
    let source = fs::read_to_string(src.join("lib.rs")).unwrap();
    let mut homes = BTreeMap::new();
    for item in syn::parse_file(&source).unwrap().items {
        if let syn::Item::Use(item) = item
            && let UseTree::Path(path) = &item.tree
        {
            let mut named = Named::default();
            named.add(&path.tree);
            homes.extend(
                named
                    .0
                    .into_iter()
                    .map(|name| (name, path.ident.to_string())),
            );
        }
    }
    homes
}

/// The other modules that each module of the crate names.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let homes = homes(&src);
    let modules = FLOORS.iter();
    modules
        .map(|&module| {
            let file = src.join(module).with_extension("rs");
            let path = if file.exists() {
                file
            } else {
                src.join(module)
            };
            let mut sources = Vec::new();
            files_below(&path, &mut sources);
            let mut named = Named::default();
            for source in &sources {
                named.visit_file(&syn::parse_file(source).unwrap());
            }
            let named = named.0.into_iter().map(|name| match homes.get(&name) {
                Some(home) => home.clone(),
                None => name,
            });
            let mut named: BTreeSet<_> = named.collect();
            named.remove(module);
            (module.to_string(), named)
        })
        .collect()
}

/// The modules of a crate. The root is the module with the empty path.
///
/// `super::name` in `src/fs/dir.rs` is `src/fs/name.rs`, or what `src/fs/mod.rs` re-exports by that
/// name, or else `mod.rs` itself. What a module re-exports of its children is no import.
struct Inside {
    /// Paths without `.rs`, from `src`: `fs/dir`; `fs` is `fs/mod.rs`.
    modules: BTreeSet<String>,
    /// For each module, the modules that its re-exports come from.
    homes: BTreeMap<String, BTreeMap<String, String>>,
}

/// The paths that a file names, without its tests.
#[derive(Default)]
struct Paths {
    imported: Vec<Vec<String>>,
    re_exported: Vec<Vec<String>>,
}

impl Paths {
    fn flatten(tree: &UseTree, before: &[String], out: &mut Vec<Vec<String>>) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            UseTree::Path(path) => Self::flatten(&path.tree, &with(&path.ident), out),
            UseTree::Name(name) if name.ident == "self" => out.push(before.to_vec()),
            UseTree::Name(name) => out.push(with(&name.ident)),
            UseTree::Rename(rename) => out.push(with(&rename.ident)),
            UseTree::Group(group) => group
                .items
                .iter()
                .for_each(|tree| Self::flatten(tree, before, out)),
            UseTree::Glob(_) => out.push(before.to_vec()),
        }
    }
}

impl Visit<'_> for Paths {
    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        let out = match item.vis {
            syn::Visibility::Inherited => &mut self.imported,
            _ => &mut self.re_exported,
        };
        Self::flatten(&item.tree, &[], out);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let segments = path.segments.iter();
        self.imported
            .push(segments.map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        if item.ident != "tests" && item.ident != "testing" {
            visit::visit_item_mod(self, item);
        }
    }
}

fn parent(module: &str) -> &str {
    module.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Inside {
    /// The module that `path`, found in `module`, is in.
    fn find(&self, module: &str, path: &[String]) -> Option<String> {
        let (mut at, mut rest) = match path.split_first()? {
            (first, rest) if first == "crate" => (String::new(), rest),
            (first, rest) if first == "super" => (parent(module).to_owned(), rest),
            (first, rest) if first == "self" => (module.to_owned(), rest),
            _ => (module.to_owned(), path),
        };
        while let Some((name, after)) = rest.split_first() {
            let child = [&at, "/", name].concat();
            let child = child.trim_start_matches('/').to_owned();
            let home = self.homes.get(&at).and_then(|homes| homes.get(name));
            (at, rest) = match home {
                _ if name == "super" => (parent(&at).to_owned(), after),
                _ if self.modules.contains(&child) => (child, after),
                Some(home) => return Some(home.clone()),
                None => break,
            };
        }
        self.modules.contains(&at).then_some(at)
    }
}

fn modules_below(src: &Path, at: &Path, out: &mut BTreeMap<String, Paths>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            modules_below(src, &path, out);
        } else if path.extension() == Some("rs".as_ref())
            && !["tests", "testing", "fake"].contains(&stem)
        {
            let mut paths = Paths::default();
            paths.visit_file(&syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
            let module = match stem {
                "mod" => path.parent().unwrap().to_owned(),
                "lib" | "main" if at == src => src.to_owned(),
                _ => path.with_extension(""),
            };
            let module = module.strip_prefix(src).unwrap().to_str().unwrap();
            let known = out.entry(module.to_owned()).or_default();
            known.imported.extend(paths.imported);
            known.re_exported.extend(paths.re_exported);
        }
    }
}

/// For each module of a crate, the other children of its parent that it imports from. The imports
/// of a module's children count as its own. Imports between a module and its own children are left
/// out: a module holds what its children share, and its own code uses them.
fn imports_inside(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = BTreeMap::new();
    modules_below(src, src, &mut files);
    let mut inside = Inside {
        modules: files.keys().cloned().collect(),
        homes: BTreeMap::new(),
    };
    for (module, paths) in &files {
        let homes = paths.re_exported.iter().filter_map(|path| {
            let home = inside.find(module, path)?;
            Some((path.last()?.clone(), home)).filter(|(_, home)| home != module)
        });
        let homes = homes.collect();
        inside.homes.insert(module.clone(), homes);
    }
    let mut imports: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (module, paths) in &files {
        let others = paths.imported.iter();
        for other in others.filter_map(|path| inside.find(module, path)) {
            if let Some((from, to)) = siblings(module, &other) {
                imports.entry(to.clone()).or_default();
                imports.entry(from).or_default().insert(to);
            }
        }
    }
    imports
}

/// The two children of the closest common parent that contain `one` and `other`. `None` if one of the
/// two contains the other.
fn siblings(one: &str, other: &str) -> Option<(String, String)> {
    let (one, other): (Vec<_>, Vec<_>) = (one.split('/').collect(), other.split('/').collect());
    let common = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let child =
        |path: &[&str]| Some(path.get(..=common)?.join("/")).filter(|path| !path.is_empty());
    Some((child(&one)?, child(&other)?))
}

/// The groups of modules each of which reaches all others of its group by its imports.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reached = |from: &String| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            next.extend(
                imports[module]
                    .iter()
                    .filter(|other| reached.insert((*other).clone())),
            );
        }
        reached
    };
    let reached: BTreeMap<_, _> = imports.keys().map(|from| (from, reached(from))).collect();
    let group = |(from, all): (&&String, &BTreeSet<String>)| -> BTreeSet<String> {
        let both_ways = all.iter().filter(|other| reached[other].contains(*from));
        both_ways.cloned().collect()
    };
    let groups = reached.iter().map(group);
    groups.filter(|group| !group.is_empty()).collect()
}

#[test]
fn a_circle_through_the_children_of_modules_is_found() {
    // `fs/dir` imports from `fs/walk/step`, and `fs/walk/names` from `fs/dir`.
    let first = siblings("fs/dir", "fs/walk/step");
    assert_eq!(first, Some(("fs/dir".into(), "fs/walk".into())));
    let imports = [first, siblings("fs/walk/names", "fs/dir")].map(Option::unwrap);
    let imports = imports.map(|(from, to)| (from, [to].into()));
    let circle = ["fs/dir".to_owned(), "fs/walk".to_owned()];
    assert_eq!(circles(&imports.into()), [circle.into()].into());
    // A module and its child, also of the root.
    assert_eq!(siblings("fs/walk", "fs/walk/step"), None);
    assert_eq!(siblings("fs/dir", ""), None);
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in [
        "src",
        "benches/src",
        "boards/qemu/src",
        "boards/qemu-aarch64/src",
        "boards/qemu-x86_64/src",
        "fuzz/src",
        "host/src",
        "tests/device/src",
        "zstd/src",
    ] {
        let imports = imports_inside(&root.join(path));
        assert_eq!(circles(&imports), BTreeSet::new(), "in {path}");
    }
}

#[test]
fn every_module_is_on_a_floor() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let entries = fs::read_dir(src)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let modules = entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    let modules: BTreeSet<_> = modules.filter(|module| module != "lib").collect();
    assert_eq!(modules, FLOORS.map(str::to_owned).into());
}

#[test]
fn a_floor_names_only_those_below_it() {
    let floor_of = |module: &str| {
        let floor = FLOORS.iter().position(|floor| *floor == module);
        floor.unwrap_or_else(|| panic!("{module} is on no floor"))
    };
    for (module, named) in imports() {
        for other in named {
            assert!(
                floor_of(&other) < floor_of(&module),
                "src/{module} names {other}, which is not below it"
            );
        }
    }
}

/// The rows of the table in ARCHITECTURE.md are `| floor | module | names | ... |`.
#[test]
fn the_picture_in_architecture_md_is_what_the_code_imports() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(path).unwrap();
    let cell = |cell: &str| -> BTreeSet<String> {
        let words = cell.split(['`', ',', ' ']);
        words
            .filter(|word| !word.is_empty())
            .map(String::from)
            .collect()
    };
    let mut drawn = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", _, module, names, _, ""] = cells[..]
            && let Some(module) = module
                .strip_prefix("`src/")
                .and_then(|m| m.strip_suffix('`'))
        {
            drawn.insert(module.trim_end_matches(".rs").to_string(), cell(names));
        }
    }
    assert_eq!(drawn, imports());
}
