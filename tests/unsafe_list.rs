//! Compares the list of every `unsafe` in `docs/unsafe.md` with the sources.
//!
//! The list covers the code that runs on a bare machine: the library, the boards and the minimal examples.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::visit::{self, Visit};

const LIST: &str = "docs/unsafe.md";

/// The header of its table.
const TABLE: &str = "| file | what it is for | `unsafe` in it |\n|---|---|---|\n";

/// The modules that must have no `unsafe`, and must say `forbid(unsafe_code)`.
const WITHOUT: [&str; 3] = ["src/fuse", "src/fs", "src/boot"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The `unsafe` of one file: the number of each kind in each item.
#[derive(Default)]
struct Unsafe {
    /// The enclosing modules, types and functions.
    around: Vec<String>,
    found: BTreeMap<String, BTreeMap<&'static str, usize>>,
    order: Vec<String>,
}

impl Unsafe {
    fn note(&mut self, kind: &'static str) {
        let item = match &self.around[..] {
            [] => "the file".to_owned(),
            names => names.join("::"),
        };
        if !self.order.contains(&item) {
            self.order.push(item.clone());
        }
        *self.found.entry(item).or_default().entry(kind).or_default() += 1;
    }

    fn within(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.around.push(name);
        visit(self);
        self.around.pop();
    }

    fn count(&self) -> usize {
        self.found.values().flat_map(BTreeMap::values).sum()
    }

    /// The cell of the table for this file.
    fn describe(&self) -> String {
        let items = self.order.iter().map(|item| {
            let kinds = self.found[item].iter().map(|(kind, count)| match count {
                1 => (*kind).to_owned(),
                _ => format!("{count} {kind}s"),
            });
            format!("`{item}`: {}", kinds.collect::<Vec<_>>().join(", "))
        });
        items.collect::<Vec<_>>().join("; ")
    }
}

/// The last name of a type's path, without its parameters.
fn type_name(of: &syn::Type) -> String {
    match of {
        syn::Type::Path(path) => path.path.segments.last().unwrap().ident.to_string(),
        other => other.to_token_stream().to_string(),
    }
}

impl<'ast> Visit<'ast> for Unsafe {
    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("unsafe") {
            self.note("attribute");
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.within(item.ident.to_string(), |list| {
            visit::visit_item_mod(list, item);
        });
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.within(item.ident.to_string(), |list| {
            if item.unsafety.is_some() {
                list.note("trait");
            }
            visit::visit_item_trait(list, item);
        });
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.within(type_name(&item.self_ty), |list| {
            if item.unsafety.is_some() {
                list.note("impl");
            }
            visit::visit_item_impl(list, item);
        });
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        if item.unsafety.is_some() {
            self.note("extern block");
        }
        visit::visit_item_foreign_mod(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.within(item.sig.ident.to_string(), |list| {
            visit::visit_item_fn(list, item);
        });
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.within(item.sig.ident.to_string(), |list| {
            visit::visit_impl_item_fn(list, item);
        });
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.within(item.sig.ident.to_string(), |list| {
            visit::visit_trait_item_fn(list, item);
        });
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        if matches!(signature.safety, syn::Safety::Unsafe(_)) {
            self.note("fn");
        }
        visit::visit_signature(self, signature);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.note("block");
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_type_fn_ptr(&mut self, function: &'ast syn::TypeFnPtr) {
        if function.unsafety.is_some() {
            self.note("function type");
        }
        visit::visit_type_fn_ptr(self, function);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        // The expansion of a macro is not known here, so each word `unsafe` in its tokens counts.
        for _ in 0..words(called.tokens.clone()) {
            self.note("word in a macro");
        }
    }
}

/// The number of words `unsafe` in `tokens`.
fn words(tokens: TokenStream) -> usize {
    let count = tokens.into_iter().map(|token| match token {
        TokenTree::Ident(ident) => usize::from(ident == "unsafe"),
        TokenTree::Group(group) => words(group.stream()),
        _ => 0,
    });
    count.sum()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The first sentence of a file's documentation.
fn purpose(file: &syn::File) -> String {
    let lines = file.attrs.iter().filter_map(|attribute| {
        let syn::Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        let syn::Expr::Lit(syn::ExprLit { lit, .. }) = &pair.value else {
            return None;
        };
        match lit {
            syn::Lit::Str(text) if pair.path.is_ident("doc") => Some(text.value()),
            _ => None,
        }
    });
    let lines: Vec<_> = lines.take_while(|line| !line.trim().is_empty()).collect();
    let text = lines.concat();
    let text = text.trim();
    text.split_once(". ")
        .map_or(text, |(first, _)| first)
        .trim_end_matches('.')
        .to_owned()
}

fn forbids_unsafe(file: &syn::File) -> bool {
    let mut lints = file
        .attrs
        .iter()
        .filter_map(|attribute| match &attribute.meta {
            syn::Meta::List(list) if list.path.is_ident("forbid") => Some(list.tokens.to_string()),
            _ => None,
        });
    lints.any(|lint| lint == "unsafe_code")
}

/// The table that the sources should give.
fn table() -> String {
    let mut files = Vec::new();
    for dir in ["src", "boards", "examples"] {
        sources(&root().join(dir), &mut files);
    }
    files.sort();
    let mut table = TABLE.to_owned();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().display();
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut list = Unsafe::default();
        list.visit_file(&file);
        assert_eq!(
            list.count(),
            words(file.to_token_stream()),
            "{name} has an `unsafe` of a kind that this test does not know"
        );
        if list.count() > 0 {
            writeln!(
                table,
                "| `{name}` | {} | {} |",
                purpose(&file),
                list.describe()
            )
            .unwrap();
        }
    }
    table
}

#[test]
fn every_unsafe_is_in_the_list() {
    let path = root().join(LIST);
    let list = fs::read_to_string(&path).unwrap();
    let start = list.find(TABLE).expect("a table");
    let table = table();
    if list[start..] != table {
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, [&list[..start], &table].concat()).unwrap();
            return;
        }
        panic!(
            "{LIST} is not what the sources have: read what changed, then run\n    \
             UPDATE=1 cargo test --test unsafe_list\n\n{table}"
        );
    }
}

#[test]
fn three_modules_forbid_unsafe() {
    for floor in WITHOUT {
        let text = fs::read_to_string(root().join(floor).join("mod.rs")).unwrap();
        assert!(forbids_unsafe(&syn::parse_file(&text).unwrap()), "{floor}");
        let table = table();
        let mut rows = table.lines();
        assert!(
            rows.all(|row| !row.starts_with(&format!("| `{floor}/"))),
            "{floor}"
        );
    }
}
