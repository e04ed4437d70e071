//! Sorting in place. The standard library's is made for speed and takes 11 kB of flash; on a board this one does.

use core::mem;

use crate::part::put;

/// Sorts by a strict order, in which items that are neither way before each other are equal in all bits.
pub(crate) fn sort<T: Copy>(items: &mut [T], before: impl Fn(T, T) -> bool) {
    if cfg!(target_os = "none") {
        heap_sort(items, before);
    } else {
        items.sort_unstable_by(|&a, &b| before(b, a).cmp(&before(a, b)));
    }
}

/// The same without recursion or memory: a heap with the last item on top, which gives up its tops from behind.
fn heap_sort<T: Copy>(items: &mut [T], before: impl Fn(T, T) -> bool) {
    (0..items.len() / 2).rev().for_each(|i| sift_down(items, i, &before));
    let mut heap = items;
    while let Some((last, rest)) = heap.split_last_mut() {
        if let Some(top) = rest.first_mut() {
            mem::swap(top, last);
        }
        sift_down(rest, 0, &before);
        heap = rest;
    }
}

/// Restores a heap with the last on top, of which one item may be before its children.
pub(crate) fn sift_down<T: Copy>(heap: &mut [T], mut i: usize, before: impl Fn(T, T) -> bool) {
    while 2 * i + 1 < heap.len() {
        let children = (heap.get(2 * i + 1), heap.get(2 * i + 2));
        let second = matches!(children, (Some(&one), Some(&other)) if before(one, other));
        let child = 2 * i + 1 + usize::from(second);
        let (Some(&item), Some(&last)) = (heap.get(i), heap.get(child)) else { return };
        if !before(item, last) {
            return;
        }
        put(heap, i, last);
        put(heap, child, item);
        i = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_sort_as_the_standard_library_does(items in prop::collection::vec(0u16..60, 0..100)) {
            let mut expected = items.clone();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            let (mut one, mut other) = (items.clone(), items);
            sort(&mut one, |a, b| a > b);
            heap_sort(&mut other, |a, b| a > b);
            prop_assert_eq!(&one, &expected);
            prop_assert_eq!(&other, &expected);
        }
    }
}
